"""k2lab: watch a Kimi-K2-Thinking-shaped model think, and touch it.

>>> import k2lab
>>> lab = k2lab.load()          # K2-nano; or a checkpoint folder
>>> run = lab.run("What is 3 * 14?").wait()

Importing this package loads neither torch nor Jupyter; `load` does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from k2lab.lab import Lab
    from k2lab.model.load import Placement
    from k2lab.weights.store import WeightStore

__all__ = ["load"]
__version__ = "0.1.0"


def load(
    path: str | Path | None = None, placement: Union["Placement", "WeightStore"] = "auto"
) -> "Lab":
    """The lab around a checkpoint folder; without a path, around the shipped K2-nano."""
    from k2lab.lab import Lab
    from k2lab.paths import asset

    folder = Path(path) if path is not None else asset("k2-nano")
    return Lab.open(folder, placement)
