"""From a checkpoint folder to a network: config, shards, store, in that order, each checked."""

from pathlib import Path
from typing import Literal, get_args

import torch

from k2lab.errors import InputError
from k2lab.model.k2 import K2
from k2lab.spec.config import K2Config
from k2lab.tensors.shards import Shards, check
from k2lab.weights.meta import Meta
from k2lab.weights.resident import Resident
from k2lab.weights.store import WeightStore

Placement = Literal["auto", "resident", "meta"]
"""Where the weights go: `auto` takes a GPU if there is one, `meta` has shapes and no numbers."""


def load_model(folder: Path, placement: Placement | WeightStore = "auto") -> K2:
    """The network of a checkpoint folder, its tensors checked against `config.json` first."""
    config = K2Config.from_json(folder)
    if not isinstance(placement, str):
        return K2(config, placement)
    if placement not in get_args(Placement):
        raise InputError(
            f"placement is {placement!r}.",
            expected=f"one of {', '.join(get_args(Placement))}, or a weight store.",
            mend="Leave it out to let the lab choose.",
        )
    if placement == "meta":
        return K2(config, Meta(config))
    shards = Shards(folder)
    check(shards, config)
    on_gpu = torch.cuda.is_available()
    # Float32 on a CPU: its matrix products are faster there than bfloat16 ones, and exact.
    return K2(
        config,
        Resident(
            config,
            shards.read,
            device="cuda" if on_gpu else "cpu",
            dtype=torch.bfloat16 if on_gpu else torch.float32,
        ),
    )
