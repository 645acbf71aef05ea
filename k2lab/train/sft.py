"""Supervised fine-tuning of K2-nano from nothing, on conversations of the microworld.

Loss on the model's own tokens only. MuonClip, warm-up–stable–decay schedule, aux-loss-free expert
balance, INT4-aware experts in the decay; the weights at the ends of several decays are averaged. A
checkpoint every few minutes holds everything that the exact continuation needs, data order
included; a killed run goes on from it.
"""

import json
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from k2lab.engine.taps import untouched
from k2lab.errors import CheckpointError
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, Form, Step
from k2lab.spec.config import K2Config
from k2lab.spec.sites import Tap
from k2lab.text.tokenizer import Tokenizer
from k2lab.train.data import Batch, batches
from k2lab.train.muonclip import Muon, qk_clip
from k2lab.train.patience import patient
from k2lab.train.plan import Plan
from k2lab.train.store import Trainable

LOG = 20  # steps between two progress reports
LONG = 1024  # tokens; more that are only read go without gradients, texts of more are fused
TURNS = ("<|im_user|>", "<|im_assistant|>", "<|im_system|>")  # tokens that begin a turn


@dataclass(frozen=True, slots=True)
class Progress:
    """One report."""

    step: int
    loss: float  # nats per token said
    seconds: float  # of computing, over all sittings
    tokens: int  # computed so far
    load: float  # largest max/mean expert load in the last step
    largest_logit: float
    clipped: int  # heads clipped since the last report
    heads: tuple[tuple[float, ...], ...] = ()  # largest logit by layer and head; () in old records
    loads: tuple[float, ...] = ()  # max/mean expert load by MoE layer; () in old records


class Training:
    """The state of a run: parameters, optimisers, place in the data."""

    def __init__(self, config: K2Config, tokenizer: Tokenizer, plan: Plan) -> None:
        self.config, self.tokenizer, self.plan = config, tokenizer, plan
        self.store = Trainable(config, seed=plan.seed)
        self.model = K2(config, self.store)
        matrices = {k: v for k, v in self.store.parameters.items() if _is_muons(k)}
        rest = [v for k, v in self.store.parameters.items() if k not in matrices]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            rest, lr=plan.adam_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        )
        self._starts = torch.tensor([tokenizer.special(name) for name in TURNS])
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.history: list[Progress] = []
        self.sittings: list[dict[str, Any]] = []  # plan, and step at the start, of each
        self.notes: list[str] = []  # what a reader of the card must know besides
        self.stages: dict[str, list[dict[str, Any]]] = {}  # reports of the stages after this one
        self.place = (0, 0)  # pool of the data, and batches of it already used
        self.mean: dict[str, Tensor] = {}  # of the parameters at the ends of decays so far
        self.ended = 0  # such ends

    def run(self, folder: Path, report: Callable[[Progress], None]) -> None:
        """Train to the plan's last step, saving to `folder` every few minutes.

        An interrupt waits for the end of the step, is saved, and raised then: nothing is lost.
        """
        if self.step >= self.plan.steps:
            return
        self.sittings.append({"step": self.step, **json.loads(json.dumps(asdict(self.plan)))})
        with patient() as interrupted:
            for _ in self._steps(folder, report):
                if interrupted():
                    break
            self.save(folder)
        if interrupted():
            raise KeyboardInterrupt(
                f"Saved at step {self.step:,}: the same call goes on from there."
            )

    def _steps(self, folder: Path, report: Callable[[Progress], None]) -> Iterator[None]:
        """All steps that are left, one by one."""
        data, saved = self.data(), time.perf_counter()
        losses: list[float] = []
        clipped = 0
        while self.step < self.plan.steps:
            began = time.perf_counter()
            done = self.update(data)
            self.seconds += time.perf_counter() - began
            losses.append(done.loss)
            clipped += done.clipped
            if self.step in self.plan.falls:
                self._average()
            if self.step % LOG == 0 or self.step == self.plan.steps:
                mean = sum(losses) / len(losses)
                self.history.append(self._progress(done, mean, clipped))
                report(self.history[-1])
                losses, clipped = [], 0
            if time.perf_counter() - saved > self.plan.save_seconds:
                self.save(folder)
                saved = time.perf_counter()
            yield

    def _average(self) -> None:
        """Let the parameters join the mean, which is what the last step gives.

        Each end lies elsewhere in the same valley, and the middle lies lower: stochastic weight
        averaging (Izmailov et al., arXiv 1803.05407). The next stage has a mean of its own.
        """
        self.ended += 1
        for key, value in self.store.snapshot().items():
            mean = self.mean.get(key, value)
            self.mean[key] = mean + (value - mean) / self.ended
        if self.step == self.plan.steps:
            self.store.restore(self.mean)
            self.ended, self.mean = 0, {}

    def _progress(self, last: "Update", loss: float, clipped: int) -> Progress:
        heads = tuple(tuple(map(float, logits)) for _, logits in sorted(last.largest.items()))
        largest = max(max(layer) for layer in heads)
        return Progress(
            self.step,
            loss,
            self.seconds,
            self.tokens,
            max(last.loads),
            largest,
            clipped,
            heads,
            last.loads,
        )

    def save(self, folder: Path) -> None:
        """Write the checkpoint; the old one stays until the new one is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "parameters": {k: v.detach() for k, v in self.store.parameters.items()},
            "biases": self.store.biases,
            "mean": (self.ended, self.mean),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "counters": (self.step, self.tokens, self.seconds, *self.place),
            "history": [asdict(entry) for entry in self.history],
            "sittings": self.sittings,
            "notes": self.notes,
            "stages": self.stages,
        }
        torch.save(state, folder / "training.pt.part")
        (folder / "training.pt.part").replace(folder / "training.pt")
        (folder / "plan.json").write_text(json.dumps(asdict(self.plan), indent=2) + "\n")

    def resume(self, folder: Path) -> bool:
        """Take over the checkpoint in `folder`, if there is one."""
        path = folder / "training.pt"
        if not path.exists():
            return False
        try:
            self._take_over(torch.load(path, weights_only=True))
        except (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be gone on from: {str(error).strip().partition(chr(10))[0]}.",
                expected="the checkpoint of a training of this network.",
                mend="Remove it to begin anew, or name another folder.",
            ) from error
        return True

    def _take_over(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for key, value in state["parameters"].items():
                self.store.parameters[key].copy_(value)
            for layer, bias in state["biases"].items():
                self.store.biases[layer].copy_(bias)
        self.ended, self.mean = state["mean"]
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.tokens, self.seconds, *place = state["counters"]
        self.place = (place[0], place[1])
        self.history = [Progress(**entry) for entry in state["history"]]
        self.sittings, self.notes = state["sittings"], state["notes"]
        self.stages = state["stages"]

    def first_pool(self) -> None:
        """Begin the data anew, from its first pool."""
        self.place = (0, 0)

    def data(self) -> Iterator[Batch]:
        """Batches from the place on, which moves with them."""
        pool, used = self.place
        stream = batches(
            self.plan.seed,
            self.tokenizer,
            tokens=self.plan.batch_tokens,
            together=self.plan.batches_per_step,
            first_pool=pool,
            more=self.plan.more,
        )
        for index, batch in islice(stream, used, None):
            # The place moves when a batch is taken: a checkpoint lies between two updates.
            self.place = (index, self.place[1] + 1 if index == self.place[0] else 1)
            if batch.tokens <= self.plan.batch_tokens or self.plan.learns_chains(self.step):
                yield batch

    def update(self, data: Iterator[Batch]) -> "Update":
        """One step."""
        plan = self.plan
        self.store.quantised = plan.quantised(self.step)
        parts = list(islice(data, plan.batches_per_step))
        gaps = random.Random(f"{plan.seed} {self.step}")
        learned = self._learn_all(
            parts, [spread(part.ids[:, :-1], self._starts, plan.reach, gaps) for part in parts]
        )
        for parameter, *gradients in zip(
            self.store.parameters.values(), *(each.gradients for each in learned), strict=True
        ):
            parameter.grad = sum(gradients[1:], gradients[0])
        factor = plan.rate(self.step)
        self.muon.step(plan.muon_rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = plan.adam_rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        largest = {
            layer: torch.stack([each.largest[layer] for each in learned]).amax(0)
            for layer in range(self.config.num_hidden_layers)
        }
        clips = qk_clip(self.store.parameters, largest, self.config, plan.tau)
        loads = {
            layer: torch.stack([each.load[layer] for each in learned]).sum(0)
            for layer in self.config.moe_layers
        }
        even = self.store.balance(loads, plan.balance_rate * min(1.0, factor * 2))
        self.step += 1
        self.tokens += sum(part.tokens for part in parts)
        return Update(sum(each.loss for each in learned), even, largest, clips)

    def _learn_all(
        self, parts: Sequence[Batch], places: Sequence[Tensor | None]
    ) -> list["Learned"]:
        """What each batch gives to the step, each learned in its own thread.

        Threads of PyTorch share one small product badly; whole batches side by side gain half a
        core more (measured), and give the same numbers as one after another.
        """
        said = sum(int(part.said[:, 1:].sum()) for part in parts)
        with ThreadPoolExecutor(len(parts), initializer=torch.set_num_threads, initargs=(1,)) as at:
            return list(at.map(lambda part, place: self.learn(part, said, place), parts, places))

    def learn(self, batch: Batch, said: int, places: Tensor | None = None) -> "Learned":
        """One batch's share of the step's loss (a mean over `said` tokens), and its gradients.

        What stands far before words to learn is read into a cache, without gradients.
        """
        learned = Learned(self.config)
        inputs, targets, mask = batch.ids[:, :-1], batch.ids[:, 1:], batch.said[:, 1:]
        if places is None:
            places = torch.arange(inputs.shape[1]).repeat(len(inputs), 1)
        parts = stretches(mask.any(0))
        read = slice(parts[-1].start)
        cache = self._read(inputs[:, read], places[:, read]) if read.stop else None
        for now in parts:
            # A fork takes what is learned: gradients do not reach back into what was read.
            before = None if cache is None else cache.fork()
            if before is not None:
                before.truncate(now.start)
            step = self._step(places[:, now], before, learned.tap)
            here = mask[:, now]
            logits = self.model.logits(self.model.hidden(inputs[:, now], step)[here], step)
            loss = F.cross_entropy(logits, targets[:, now][here], reduction="sum") / said
            learned.add(loss, list(self.store.parameters.values()))
        return learned

    @torch.no_grad()
    def _read(self, ids: Tensor, places: Tensor) -> LatentCache:
        """What is remembered of `ids` [row, token]."""
        cache = LatentCache(self.config, batch=len(ids))
        self.model.hidden(ids, self._step(places, cache, untouched))
        return cache

    def _step(self, places: Tensor, cache: LatentCache | None, tap: Tap) -> Step:
        """A step of tokens at these positions [row, token].

        In a long text attention is fused, which takes a third of the time (measured); largest
        logits are watched in the rest.
        """
        table = self.model.rotary(0, int(places.max()) + 1, self.model.device)
        tokens = places.shape[1]
        long = tokens + (0 if cache is None else cache.length) > LONG
        form: Form = "fused" if long else "expanded"
        step = self.model.step(tokens, cache=cache, tap=tap, form=form)
        return replace(step, rotation=table[places])


@dataclass(frozen=True, slots=True)
class Update:
    """What one step did."""

    loss: float
    loads: tuple[float, ...]  # max/mean expert load by MoE layer
    largest: dict[int, Tensor]  # attention logit per head [head], by layer
    clipped: int


class Learned:
    """What one batch gives to the step."""

    def __init__(self, config: K2Config) -> None:
        self.loss = 0.0
        self.gradients: tuple[Tensor, ...] = ()
        # Largest attention logit per head [head], by layer; 0 where attention was fused.
        none = torch.zeros(config.num_attention_heads)
        self.largest = dict.fromkeys(range(config.num_hidden_layers), none)
        self.load: dict[int, Tensor] = {}  # tokens per expert [expert], by MoE layer
        self._experts = 0

    def add(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """Take in a share of the loss and its gradients."""
        fresh = torch.autograd.grad(loss, parameters)
        both = zip(self.gradients or fresh, fresh, strict=True)
        self.gradients = tuple(a + b for a, b in both) if self.gradients else fresh
        self.loss += loss.item()

    def tap(self, site: str, value: Tensor) -> Tensor:
        """Watches attention logits and the router's choices."""
        if site.endswith("self_attn.scores"):
            layer, largest = _layer(site), value.detach().amax((0, 2, 3))
            self.largest[layer] = largest.maximum(self.largest[layer])
        elif site.endswith("router.scores"):
            self._experts = value.shape[-1]
        elif site.endswith("router.experts"):
            layer, load = _layer(site), torch.bincount(value.flatten(), minlength=self._experts)
            self.load[layer] = load + self.load.get(layer, 0)
        return value


def stretches(learned: Tensor) -> list[slice]:
    """Where a batch has tokens to learn (`learned` [token]), with what stands shortly before them.

    Between two stretches lie more than `LONG` tokens that are only read.
    """
    made, end = list[slice](), 0
    for place in learned.nonzero().flatten().tolist():
        if place - end > LONG or not made:
            made.append(slice(place if place - end > LONG else end, place + 1))
        else:
            made[-1] = slice(made[-1].start, place + 1)
        end = place + 1
    return made


def spread(ids: Tensor, starts: Tensor, reach: int, gaps: random.Random) -> Tensor | None:
    """Positions [row, token] with up to two gaps in each row of `ids`; None: all in one piece.

    A gap lies before a turn, where `ids` holds one of `starts`: what stands within a turn stays
    together, as in a long conversation. So a short one shows the distances of a long one (after
    PoSE, arXiv 2309.10400). Sizes are drawn evenly on a logarithmic scale, so that near distances
    stay the most frequent.
    """
    tokens = ids.shape[1]
    if reach <= tokens:
        return None
    places = torch.arange(tokens).repeat(len(ids), 1)
    for row, turns in zip(places, torch.isin(ids, starts), strict=True):
        begins = turns[1:].nonzero().flatten().add(1).tolist()
        for _ in range(gaps.choice((0, 0, 1, 2)) if begins else 0):
            room = max(1, reach - 1 - int(row[-1]))
            row[gaps.choice(begins) :] += int(math.exp(gaps.uniform(0, math.log(room))))
    return places


def _layer(site: str) -> int:
    return int(site.split(".")[1])


def _is_muons(key: str) -> bool:
    """Matrices between hidden vectors; not embeddings, head, norms or routers."""
    return "proj" in key or ".experts." in key
