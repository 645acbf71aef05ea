"""Surgery: the tap that carries out a set of edits.

Experts and heads are touched at the sites where the network names them: the choice score before
the top k, the mixing weights, the heads' outputs. A tap is made for each forward, because only
the engine knows which tokens of the run a forward reads. Not here: what edits there are
(`edits.py`), and what they did (`experiment.py`).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from k2lab.engine.edits import (
    BiasExperts,
    Edit,
    ForceExperts,
    RouteAround,
    Rule,
    SwapRouter,
    ZeroExperts,
    ZeroHeads,
    refused,
)
from k2lab.engine.events import Kind
from k2lab.engine.taps import untouched
from k2lab.errors import InputError
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap, describe, looking_at

Change = Callable[[Tensor], Tensor]


class Surgery:
    """A set of edits, checked against a config."""

    def __init__(self, edits: Sequence[Edit], config: K2Config) -> None:
        self.edits = tuple(edits)
        self._config = config
        for each in self.edits:
            _check(each, config)
        _check_choice(self.edits, config)
        # Another router first: what is forced or biased is so under its rule.
        self._ordered = sorted(self.edits, key=lambda each: not isinstance(each, SwapRouter))

    def tap(self, start: int, kinds: Sequence[Kind] | None, tokens: int) -> Tap:
        """The tap of one forward over `tokens` tokens from index `start`; kinds where known."""
        changes: dict[str, list[Change]] = {}
        for each in self._ordered:
            rows = _rows(each, start, kinds, tokens)
            if rows is None or rows.any():
                for site, change in _changes(each, rows):
                    changes.setdefault(site, []).append(change)
        if not changes:
            return untouched

        def tap(site: str, value: Tensor) -> Tensor:
            for change in changes.get(site, ()):
                value = change(value)
            return value

        return looking_at(tap, (describe(site).name for site in changes))


def _rows(edit: Edit, start: int, kinds: Sequence[Kind] | None, tokens: int) -> Tensor | None:
    """Which tokens of this forward are meant [token]; None: all."""
    if edit.tokens is None and edit.segment is None:
        return None
    rows = torch.ones(tokens, dtype=torch.bool)
    if edit.tokens is not None:
        places = torch.arange(start, start + tokens)
        rows &= (places >= edit.tokens[0]) & (places < edit.tokens[1])
    if edit.segment is not None:
        if kinds is None:
            raise InputError(
                f"An edit of the segment {edit.segment!r} met tokens of no known segment.",
                expected="a run, whose tokens belong to thinking, answer and so on.",
                mend="Use lab.run, or give the edit a range of tokens.",
            )
        rows &= torch.tensor([kind == edit.segment for kind in kinds])
    return None if bool(rows.all()) else rows


def _changes(edit: Edit, rows: Tensor | None) -> Iterator[tuple[str, Change]]:
    """What the edit does at which sites, for these tokens."""
    router = f"layers.{edit.layer}.mlp.router"
    match edit:
        case ZeroExperts(experts=experts):
            seen: list[Tensor] = []

            def chosen(value: Tensor) -> Tensor:
                seen[:] = [value]
                return value

            def dropped(value: Tensor) -> Tensor:
                mine = torch.isin(seen[0], torch.tensor(experts, device=value.device))
                return _where(rows, value.masked_fill(mine, 0), value)

            yield f"{router}.experts", chosen
            yield f"{router}.weights", dropped
        case RouteAround(experts=experts):
            yield f"{router}.choice", _filled(experts, float("-inf"), rows)
        case ForceExperts(experts=experts):
            yield f"{router}.choice", _filled(experts, float("inf"), rows)
        case BiasExperts(experts=experts, amount=amount):

            def biased(value: Tensor) -> Tensor:
                raised = value.clone()
                raised[..., list(experts)] += amount
                return _where(rows, raised, value)

            yield f"{router}.choice", biased
        case ZeroHeads(heads=heads):

            def silent(value: Tensor) -> Tensor:  # [batch, token, head, value]
                quiet = value.clone()
                quiet[:, :, list(heads)] = 0
                return _where(None if rows is None else rows.unsqueeze(-1), quiet, value)

            yield f"layers.{edit.layer}.self_attn.heads", silent
        case SwapRouter(rule=rule):
            yield from _swapped(router, rule, rows)


def _swapped(router: str, rule: Rule, rows: Tensor | None) -> Iterator[tuple[str, Change]]:
    seen: dict[str, Tensor] = {}

    def logits(value: Tensor) -> Tensor:
        seen["softmax"] = value.softmax(-1)
        return value

    def scores(value: Tensor) -> Tensor:
        seen["scores"] = _where(rows, seen["softmax"], value) if rule == "softmax" else value
        return seen["scores"]

    def choice(value: Tensor) -> Tensor:
        open_groups = torch.where(value.isinf(), value, seen["scores"])
        return _where(rows, open_groups, value)

    def weights(value: Tensor) -> Tensor:
        """The strongest ⌈exp(H)⌉ of the chosen, with the sum that all of them had."""
        effective = torch.special.entr(seen["softmax"]).sum(-1, keepdim=True).exp().ceil()
        rank = value.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        kept = value.masked_fill(rank >= effective, 0)
        return _where(
            rows, kept * (value.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)), value
        )

    yield f"{router}.logits", logits
    if rule == "adaptive":
        yield f"{router}.weights", weights
    else:
        yield f"{router}.scores", scores
        yield f"{router}.choice", choice


def _filled(experts: Sequence[int], amount: float, rows: Tensor | None) -> Change:
    def change(value: Tensor) -> Tensor:
        filled = value.clone()
        filled[..., list(experts)] = amount
        return _where(rows, filled, value)

    return change


def _where(rows: Tensor | None, changed: Tensor, value: Tensor) -> Tensor:
    """`changed` in the given tokens [batch, token, …], `value` in the others."""
    if rows is None:
        return changed
    return torch.where(rows.unsqueeze(-1).to(value.device), changed, value)


def _check(edit: Edit, config: K2Config) -> None:
    """Raise unless the model has the layer, the experts and the heads."""
    heads = isinstance(edit, ZeroHeads)
    layers = range(config.num_hidden_layers) if heads else config.moe_layers
    if edit.layer not in layers:
        raise refused(
            f"An edit '{edit.do}' of layer {edit.layer}",
            f"a layer from {layers[0]} to {layers[-1]}" if len(layers) else "a model with experts",
        )
    if isinstance(edit, SwapRouter):
        return
    whom = edit.heads if isinstance(edit, ZeroHeads) else edit.experts
    count = config.num_attention_heads if heads else config.n_routed_experts
    wrong = next((each for each in whom if not 0 <= each < count), None)
    if wrong is not None:
        what = "head" if heads else "expert"
        raise refused(f"An edit of {what} {wrong}", f"{what}s from 0 to {count - 1}")


def _check_choice(edits: Sequence[Edit], config: K2Config) -> None:
    """Raise where a layer would have too few experts to choose from, or too many forced."""
    slots = config.num_experts_per_tok
    within = config.n_routed_experts // config.n_group * config.topk_group
    for layer in {each.layer for each in edits}:
        mine = [each for each in edits if each.layer == layer]
        shut = {e for each in mine if isinstance(each, RouteAround) for e in each.experts}
        forced = {e for each in mine if isinstance(each, ForceExperts) for e in each.experts}
        if within - len(shut) < slots:
            raise refused(
                f"Routing around {len(shut)} experts of layer {layer}",
                f"at least {slots} experts left to choose from, so at most {within - slots}",
            )
        if len(forced) > slots:
            raise refused(
                f"Forcing {len(forced)} experts in layer {layer}",
                f"at most {slots}, the number that a token is sent to",
            )
