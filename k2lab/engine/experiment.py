"""Experiment: what an edit does to a run, against random edits of the same kind and load.

A run's tokens go through the network again, all given: once as they were, once edited, and once for
each control, where other experts take the edited ones' place: some of the nearest in load, which is
the number of times that tokens were sent to them. An edit of a busy expert always does something;
the control says how much *any* such expert would have done. The busiest experts of a layer have
none like them, so that the loads are reported, and it is said where they are far apart.

After each token that the model went on from, three things are compared with the unedited network:
logits (mean |Δ| over the vocabulary, both centred), KL divergence in nats, and whether another
token is likeliest. The interval of the difference, treatment − control, is a bootstrap over blocks
of neighbouring tokens, which depend on each other, and over the controls: it is of the mean over
the controls. `p` compares with each control alone.

Not here: what the model would have written instead; branch under the edit to see that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.engine.edits import Edit, SwapRouter, ZeroHeads, to_json, whole
from k2lab.engine.events import Kind
from k2lab.engine.generate import CHUNK
from k2lab.engine.line import END, Line, Stretch
from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2

MEASURES = ("logits", "kl", "tokens")
BLOCK = 8  # neighbouring tokens that are drawn together
RESAMPLES = 2000
NEAREST = 12  # a control expert is one of so many whose load is nearest
ALIKE = 1.2  # loads whose ratio is at most this are called equal
READING = "Interval: difference to the mean control. p: share of single controls that do as much."

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The run that is edited."""

    ids: tuple[int, ...]
    kinds: tuple[Kind, ...]
    scored: tuple[int, ...]  # tokens after which the model chose
    experts: NDArray[np.uint16]  # [token, MoE layer, slot], for the load
    first: int = 0  # index, in the run, of the first of `ids`; edits count from the run's first
    line: tuple[Stretch, ...] = (Stretch(0, ()),)  # the run's own edits, in all arms


@dataclass(frozen=True, slots=True)
class Effect:
    """One measure, each the mean over tokens; `low` … `high` is the 95 % interval."""

    measure: str
    treatment: float
    control: float  # mean over the controls
    difference: float  # treatment − control
    low: float
    high: float
    p: float  # share of controls that do at least as much, the treatment itself counted


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was found, and all that is needed to find it again."""

    edits: tuple[Edit, ...]
    controls: tuple[tuple[Edit, ...], ...]
    tokens: int  # compared
    seed: int
    effects: tuple[Effect, ...]
    load: int | None = None  # times that tokens were sent to the edited experts; None: heads only
    loads: tuple[int, ...] = ()  # the same of each control

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read it: how busy both sides are, and what the figures compare with."""
        return (READING,) if self.load is None else (_compared(self.load, self.loads), READING)

    def __str__(self) -> str:
        head = f"{'':8}{'treatment':>11}{'control':>11}{'difference':>12}  95 % interval"
        rows = [
            f"{e.measure:8}{e.treatment:11.3g}{e.control:11.3g}{e.difference:+12.3g}"
            f"  {e.low:+.3g} … {e.high:+.3g}  p = {e.p:.2f}"
            for e in self.effects
        ]
        about = f"{len(self.controls)} controls, {self.tokens} tokens, seed {self.seed}"
        return "\n".join([head, *rows, about, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "edits": [to_json(each) for each in self.edits],
            "controls": [[to_json(each) for each in edits] for edits in self.controls],
            "tokens": self.tokens,
            "seed": self.seed,
            "effects": [asdict(each) for each in self.effects],
            "load": self.load,
            "loads": list(self.loads),
            "notes": list(self.notes),
        }


def _compared(load: int, loads: Sequence[int]) -> str:
    """Both loads, and whether they are alike."""
    mean = sum(loads) / len(loads)
    told = f"Load: {load}, controls {mean:.1f} on average, {min(loads)} … {max(loads)}"
    low, high = sorted((load, mean))
    if high <= ALIKE * low:
        return f"{told}."
    how = "busier" if load > mean else "less busy"
    return f"{told}. Not equal: the edited experts are {how}, which makes a difference by itself."


def experiment(
    model: K2, subject: Subject, edits: Sequence[Edit], *, controls: int = 12, seed: int = 0
) -> Experiment:
    """Treatment against as many different controls as there are, at most `controls`."""
    wholes = whole(controls), whole(seed)
    if not edits or None in wholes or controls < 1 or seed < 0:
        raise InputError(
            f"An experiment with {len(edits)} edits, {controls!r} controls and the seed {seed!r}.",
            expected="at least one edit and one control, and a whole number from 0 as seed.",
            mend="Give the edits as records or JSON, and controls=12 or so.",
        )
    random = np.random.default_rng(seed)
    Line(subject.line, model.config, edits)  # refuses what this model cannot do
    start = _start(edits, subject)
    scored = [place for place in subject.scored if place >= start]
    if not scored:
        last = subject.first + max(subject.scored, default=0)
        raise InputError(
            f"Edits from token {subject.first + start} on, after which the model wrote nothing.",
            expected=f"a range that begins at token {last} or before.",
            mend="Choose earlier tokens.",
        )
    drawn = tuple(_controls(edits, subject, model, controls, random))
    arms = _effects(model, subject, [tuple(edits), *drawn], start, scored)  # [arm, measure, token]
    return Experiment(
        tuple(edits),
        drawn,
        len(scored),
        seed,
        tuple(_summary(arms, random)),
        _sent(edits, subject, model),
        tuple(sent for each in drawn if (sent := _sent(each, subject, model)) is not None),
    )


def _start(edits: Sequence[Edit], subject: Subject) -> int:
    """Place, in the subject, of the first token that is edited."""
    begins = []
    for each in edits:
        first, last = each.tokens or (0, END)
        if last <= subject.first:
            raise InputError(
                f"An edit of tokens {first} … {last - 1}, which were compacted away since.",
                expected=f"tokens of the last context, which begins with token {subject.first}.",
                mend="Choose later tokens, or experiment with a branch from before that.",
            )
        begins.append(max(0, first - subject.first))
    return min(begins)


def _effects(
    model: K2, subject: Subject, arms: Sequence[tuple[Edit, ...]], start: int, scored: list[int]
) -> Numbers:
    """Each arm's measures after each scored token: [arm, measure, token]."""
    shared = LatentCache(model.config)
    own = Line(subject.line, model.config)
    with torch.inference_mode():
        for _ in _logits(model, subject, own, shared, range(start), []):
            pass  # what comes before the first edited token is the same in all arms
        rest = range(start, len(subject.ids))
        plain = list(_logits(model, subject, own, shared.fork(), rest, scored))
        found = []
        for edits in arms:
            edited = Line(subject.line, model.config, edits)
            pairs = zip(
                plain, _logits(model, subject, edited, shared.fork(), rest, scored), strict=True
            )
            found.append(np.concatenate([_measures(base, other) for base, other in pairs], axis=1))
    return np.stack(found)


def _logits(
    model: K2,
    subject: Subject,
    line: Line,
    cache: LatentCache,
    places: range,
    scored: Sequence[int],
) -> Iterator[Tensor]:
    """Logits after the scored of these tokens, a chunk at a time [token, vocab]."""
    for first in range(places.start, places.stop, CHUNK):
        part = slice(first, min(first + CHUNK, places.stop))
        ids = torch.tensor([subject.ids[part]], device=model.device)
        tap = line.tap(subject.first + first, subject.kinds[part], ids.shape[1])
        step = model.step(ids.shape[1], cache=cache, tap=tap)
        hidden = model.hidden(ids, step)
        mine = [place - first for place in scored if part.start <= place < part.stop]
        if mine:
            yield model.logits(hidden[:, mine], step)[0].float()


def _measures(base: Tensor, other: Tensor) -> Numbers:
    """Logits, KL and changed choice [measure, token]."""
    centred = [each - each.mean(-1, keepdim=True) for each in (base, other)]
    logs, changed = base.log_softmax(-1), other.log_softmax(-1)
    kl = (logs.exp() * (logs - changed)).sum(-1).clamp_min(0)  # rounding may go below 0
    rows = [
        (centred[1] - centred[0]).abs().mean(-1),
        kl,
        (base.argmax(-1) != other.argmax(-1)).float(),
    ]
    return torch.stack(rows).cpu().numpy().astype(np.float64)


def _summary(arms: Numbers, random: np.random.Generator) -> Iterator[Effect]:
    """Means, interval and rank of each measure."""
    tokens, count = arms.shape[2], len(arms) - 1
    block = min(BLOCK, tokens)
    draws = -(-tokens // block)
    starts = random.integers(0, tokens - block + 1, (RESAMPLES, draws))
    places = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :tokens]
    chosen = random.integers(0, count, (RESAMPLES, count))
    for row, name in enumerate(MEASURES):
        treated, controls = arms[0, row], arms[1:, row]
        means = controls.mean(1)
        # Token means of each resample, of the treatment and of each control [resample, arm].
        resampled = np.stack([arm[places].mean(1) for arm in (treated, *controls)], axis=1)
        control = np.take_along_axis(resampled, chosen + 1, axis=1).mean(1)
        low, high = np.quantile(resampled[:, 0] - control, (0.025, 0.975))
        mean, other = float(treated.mean()), float(means.mean())
        p = (1 + int((means >= mean).sum())) / (1 + count)
        yield Effect(name, mean, other, mean - other, float(low), float(high), p)


def _controls(
    edits: Sequence[Edit], subject: Subject, model: K2, wanted: int, random: np.random.Generator
) -> Iterator[tuple[Edit, ...]]:
    """Different random counterparts of the edits; fewer than wanted where there are no more."""
    pools = [_pool(each, edits, subject, model) for each in edits]
    seen: set[tuple[Edit, ...]] = set()
    for _ in range(50 * wanted):
        drawn = tuple(
            _counterpart(each, pool, random) for each, pool in zip(edits, pools, strict=True)
        )
        if drawn not in seen and len(seen) < wanted:
            seen.add(drawn)
            yield drawn


def _pool(edit: Edit, edits: Sequence[Edit], subject: Subject, model: K2) -> list[list[int]]:
    """For each edited expert or head those that may stand in for it, nearest load first."""
    config = model.config
    if isinstance(edit, SwapRouter):
        raise InputError(
            "An experiment with another router.",
            expected="edits of experts or heads, which have others like them.",
            mend="Compare runs with and without `lab.edit(…, rule=…)` instead.",
        )
    same = [each for each in edits if each.layer == edit.layer and not isinstance(each, SwapRouter)]
    heads = isinstance(edit, ZeroHeads)
    mine = {place for each in same if isinstance(each, ZeroHeads) == heads for place in _whom(each)}
    count = config.num_attention_heads if heads else config.n_routed_experts
    others = [place for place in range(count) if place not in mine]
    if len(others) < len(_whom(edit)):
        raise InputError(
            f"An edit of {len(mine)} of {count} in layer {edit.layer}.",
            expected="as many others, to compare it with.",
            mend="Edit fewer of them.",
        )
    if heads:
        return [others for _ in _whom(edit)]
    load = _load(edit, subject, model)
    nearest = max(NEAREST, len(_whom(edit)))
    return [
        sorted(others, key=lambda place: abs(int(load[place]) - int(load[expert])))[:nearest]
        for expert in _whom(edit)
    ]


def _counterpart(edit: Edit, pool: Sequence[Sequence[int]], random: np.random.Generator) -> Edit:
    chosen: list[int] = []
    for candidates in pool:
        free = [place for place in candidates if place not in chosen]
        chosen.append(int(free[random.integers(len(free))]))
    ordered = tuple(sorted(chosen))
    if isinstance(edit, ZeroHeads):
        return replace(edit, heads=ordered)
    assert not isinstance(edit, SwapRouter)
    return replace(edit, experts=ordered)


def _load(edit: Edit, subject: Subject, model: K2) -> NDArray[np.intp]:
    """How often the tokens that the edit acts on were sent to each expert of its layer [expert]."""
    row = edit.layer - model.config.first_k_dense_replace
    sent = subject.experts[_touched(edit, subject), row].ravel()
    return np.bincount(sent, minlength=model.config.n_routed_experts)


def _sent(edits: Sequence[Edit], subject: Subject, model: K2) -> int | None:
    """How often such tokens were sent to the edited experts; None where only heads are edited."""
    mine = [each for each in edits if not isinstance(each, ZeroHeads)]
    if not mine:
        return None
    return sum(int(_load(each, subject, model)[list(_whom(each))].sum()) for each in mine)


def _touched(edit: Edit, subject: Subject) -> NDArray[np.intp]:
    """The routed tokens that the edit acts on."""
    first, last = (place - subject.first for place in edit.tokens or (0, END))
    kinds = subject.kinds[: len(subject.experts)]
    return np.array(
        [
            place
            for place, kind in enumerate(kinds)
            if first <= place < last and edit.segment in (None, kind)
        ],
        dtype=np.intp,
    )


def _whom(edit: Edit) -> tuple[int, ...]:
    if isinstance(edit, SwapRouter):
        return ()
    return edit.heads if isinstance(edit, ZeroHeads) else edit.experts
