"""The record of a training: what it leaves behind beside the weights, for its reader and its heir.

`training.json` holds each sitting's plan, the progress reports and the place in the data, so that a
later sitting can go on from the shipped weights alone. Not here: the exact continuation of a run
whose work folder still exists (`Training.resume`).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from k2lab.errors import InputError, MissingError
from k2lab.tensors.shards import Shards
from k2lab.train.plan import Plan
from k2lab.train.sft import Progress, Training

RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What a training leaves behind."""

    sittings: list[dict[str, Any]]  # plan, and step at the start, of each
    notes: list[str]
    history: list[Progress]
    place: tuple[int, int]  # pool of the data, and batches of it already used
    stages: dict[str, list[dict[str, Any]]]  # reports of the stages after fine-tuning


def record(folder: Path) -> Record:
    """The record beside the weights of a model that this package trained."""
    path = folder / RECORD
    if not path.exists():
        raise MissingError(
            f"There is no {RECORD} in {folder}.",
            expected="the folder of a model that `k2lab train --out` wrote.",
            mend="Use K2-nano's folder, or train a model.",
        )
    held = json.loads(path.read_text(encoding="utf-8"))
    history = [Progress(**entry) for entry in held["history"]]
    pool, used = held["place"]
    return Record(held["sittings"], held["notes"], history, (pool, used), held["stages"])


def planned(sitting: dict[str, Any]) -> Plan:
    """The plan of a sitting."""
    return Plan(**{name: value for name, value in sitting.items() if name != "step"})


def write_record(training: Training, folder: Path) -> None:
    """Write the record beside the finished model in `folder`."""
    kept = Record(
        training.sittings, training.notes, training.history, training.place, training.stages
    )
    (folder / RECORD).write_text(json.dumps(asdict(kept)) + "\n", encoding="utf-8")


def go_on(training: Training, folder: Path) -> None:
    """Take over a finished model: its weights as shipped, its history, its place in the data.

    The optimisers begin anew, and experts begin at their INT4 values.
    """
    kept = record(folder)
    last = kept.history[-1]
    if last.step >= training.plan.steps:
        raise InputError(
            f"The plan ends at step {training.plan.steps:,}; the model has done {last.step:,}.",
            expected="a plan with more steps than the model has seen.",
            mend=f"Give --steps a number above {last.step}.",
        )
    training.store.adopt(Shards(folder).read)
    training.step, training.tokens, training.seconds = last.step, last.tokens, last.seconds
    training.sittings, training.notes = list(kept.sittings), list(kept.notes)
    training.history, training.place = list(kept.history), kept.place
    training.notes.append(
        f"At step {last.step:,} the training went on from the finished weights: experts from their "
        "INT4 values, optimisers anew."
    )
