"""Training speed, side by side with transformers and torch's own Muon on the same batches.

Both sides take whole steps in turns: forward, loss on the model's own tokens, backward, update.
The peer is `DeepseekV3ForCausalLM` of the same shape in float32, with `torch.optim.Muon` for
matrices and AdamW for the rest; torch's Muon refuses stacks of matrices, so the peer's routed
experts, which transformers stacks, are left to AdamW (less work than Muon). Whichever of its
expert implementations and thread counts is fastest in a trial is taken. Not here: how well either
learns.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from k2lab.errors import MissingError
from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer
from k2lab.train.data import Batch, batches
from k2lab.train.nano import keep_memory
from k2lab.train.plan import Plan
from k2lab.train.sft import Training

THREADS = (1, 2)
IMPLEMENTATIONS = ("grouped_mm", "eager")  # the peer's ways to compute experts
TRIAL = 2  # steps of the trial that chooses among variants; the first warms up


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of both sides, medians over the steps."""

    k2lab_tok_s: float
    peer_tok_s: float
    ratio: float  # k2lab / peer: above 1, k2lab is faster
    k2lab: str  # threads
    peer: str  # version, expert implementation and threads
    steps: int
    step_tokens: float  # mean tokens of a step, padding included


Step = Callable[[Sequence[Batch]], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run one side."""

    name: str
    threads: int
    step: Step

    def seconds(self, parts: Sequence[Batch]) -> float:
        """How long one step takes."""
        torch.set_num_threads(self.threads)
        began = time.perf_counter()
        self.step(parts)
        return time.perf_counter() - began


def speed(folder: Path, *, steps: int = 6) -> Speed:
    """The comparison for the shape and the tokenizer of a checkpoint folder."""
    before = torch.get_num_threads()
    keep_memory()
    config = replace(K2Config.from_json(folder), quantization_config=None, dtype="float32")
    tokenizer, plan = Tokenizer.from_folder(folder), Plan()
    data = _steps(tokenizer, plan)
    try:
        trial = [next(data) for _ in range(TRIAL)]
        own = _fastest(list(_own(config, tokenizer, plan)), trial)
        peer = _fastest(list(_peers(config, plan)), trial)
        ours, theirs, tokens = [], [], []
        for parts in islice(data, steps):
            tokens.append(sum(part.tokens for part in parts))
            ours.append(tokens[-1] / own.seconds(parts))
            theirs.append(tokens[-1] / peer.seconds(parts))
    finally:
        torch.set_num_threads(before)
    return Speed(
        k2lab_tok_s=median(ours),
        peer_tok_s=median(theirs),
        ratio=median(mine / other for mine, other in zip(ours, theirs, strict=True)),
        k2lab=own.name,
        peer=peer.name,
        steps=steps,
        step_tokens=sum(tokens) / len(tokens),
    )


def _steps(tokenizer: Tokenizer, plan: Plan) -> Iterator[list[Batch]]:
    """The batches of one step after the other.

    Long chains are left out: most of them is only read, which the peer has no way to do.
    """
    made = batches(plan.seed, tokenizer, tokens=plan.batch_tokens)
    data = (batch for _, batch in made if batch.tokens <= plan.batch_tokens)
    while True:
        yield list(islice(data, plan.batches_per_step))


def _fastest(variants: Sequence[Variant], trial: Sequence[Sequence[Batch]]) -> Variant:
    """The variant whose last trial step is the shortest."""
    return min(variants, key=lambda variant: [variant.seconds(parts) for parts in trial][-1])


def _own(config: K2Config, tokenizer: Tokenizer, plan: Plan) -> Iterator[Variant]:
    training = Training(config, tokenizer, plan)

    def step(parts: Sequence[Batch]) -> None:
        training.update(iter(parts))

    for count in THREADS:
        yield Variant(f"k2lab, threads {count}", count, step)


def _peers(config: K2Config, plan: Plan) -> Iterator[Variant]:
    try:
        import transformers
    except ImportError as error:
        raise MissingError(
            "The package transformers is not installed.",
            expected="the peer of the comparison.",
            mend="Install it with `pip install k2lab[test]`.",
        ) from error
    shape = transformers.DeepseekV3Config.from_dict(
        {**config.to_json(), "model_type": "deepseek_v3"}
    )
    for implementation in IMPLEMENTATIONS:
        model = transformers.DeepseekV3ForCausalLM._from_config(  # noqa: SLF001
            shape, dtype=torch.float32, experts_implementation=implementation
        )
        step = _peer_step(model.train(), plan)
        name = f"transformers {transformers.__version__}, {implementation}"
        for count in THREADS:
            yield Variant(f"{name}, threads {count}", count, step)


def _peer_step(model: Any, plan: Plan) -> Step:
    named = dict(model.named_parameters())
    matrices = [v for k, v in named.items() if "proj" in k and v.dim() == 2]
    held = {id(value) for value in matrices}
    rest = [value for value in named.values() if id(value) not in held]
    muon: Any = torch.optim.Muon(matrices, lr=plan.muon_rate, adjust_lr_fn="match_rms_adamw")
    adam: Any = torch.optim.AdamW(rest, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def step(parts: Sequence[Batch]) -> None:
        said = sum(int(part.said[:, 1:].sum()) for part in parts)
        for part in parts:
            hidden = model.model(part.ids[:, :-1], use_cache=False).last_hidden_state
            mask = part.said[:, 1:]
            logits = model.lm_head(hidden[mask])
            loss = F.cross_entropy(logits, part.ids[:, 1:][mask], reduction="sum") / said
            loss.backward()
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return step
