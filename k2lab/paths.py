"""Where front ends, assets and notebooks lie: the only module that knows.

Two places, in this order: inside the installed package (`k2lab/_front`, `_assets`, `_notebooks`:
a wheel), or beside it (`widgets/`, `assets/`, `notebooks/`: a checkout, recognised by its marker
file `widgets/_kit.js`). It reads nothing but folder entries.
"""

from pathlib import Path

from k2lab.errors import MissingError

PACKAGE = Path(__file__).resolve().parent
MARKER = "_kit.js"


def front() -> Path:
    """The folder with the widgets' JavaScript and CSS."""
    return _find("_front", "widgets")


def assets() -> Path:
    """The folder with K2-nano, K2-Thinking's config and the pictures."""
    return _find("_assets", "assets")


def notebooks() -> Path:
    """The folder with the course."""
    return _find("_notebooks", "notebooks")


def asset(name: str) -> Path:
    """The path of one asset, such as `k2-nano`; MissingError when it is not there."""
    path = assets() / name
    if not path.exists():
        there = ", ".join(sorted(p.name for p in path.parent.iterdir())) or "nothing"
        raise MissingError(
            f"No asset '{name}' in {path.parent} (there: {there}).",
            expected="a file or folder of that name.",
            mend="check the spelling, or reinstall k2lab: its wheel carries the assets.",
        )
    return path


def _find(inside: str, beside: str) -> Path:
    wheel, checkout = PACKAGE / inside, PACKAGE.parent
    if wheel.is_dir() and (inside != "_front" or (wheel / MARKER).is_file()):
        return wheel
    if (checkout / "widgets" / MARKER).is_file() and (checkout / beside).is_dir():
        return checkout / beside
    raise MissingError(
        f"Neither {wheel} (installed package) nor {checkout / beside} (checkout) is there.",
        expected=f"one of the two; a checkout also has the marker file widgets/{MARKER}.",
        mend="reinstall with 'pip install --force-reinstall k2lab', or restore the checkout.",
    )
