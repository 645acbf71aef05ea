"""CARD.md of K2-nano: what it is, how it was made, what it can do, in measured figures only."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from k2lab.evals.microworld import Report
from k2lab.model.export import sha256
from k2lab.spec.costs import parameters
from k2lab.tensors.shards import SINGLE
from k2lab.train.nano import VOCABULARY_SEED, VOCABULARY_TASKS
from k2lab.train.sft import Progress, Training

ROWS = 12  # of the loss table


def card(training: Training, report: Report, folder: Path) -> str:
    """The text of the card for the finished model in `folder`."""
    return "\n".join(
        line
        for part in (_about(training), _made(training), _able(report), _files(folder))
        for line in part
    )


def _about(training: Training) -> Iterator[str]:
    config, count = training.config, parameters(training.config)
    yield f"""# K2-nano

A language model in the architecture and file format of Kimi K2 Thinking, small enough for a
classroom: {count.total:,} parameters, {count.active:,} of them active for a token. It was trained
from nothing on a microworld of sums, a shop, weather, units and a queue, in which it thinks in
`<think>` spans and calls real tools.

**What it is not.** It holds no weights of Moonshot AI's and nothing distilled from them. It has no
general knowledge: it knows its microworld and the phrasings of its questions, and little else. Its
tools are known from training and are not declared in the prompt.

| | |
|---|---|
| layers | {config.num_hidden_layers}, the first dense |
| hidden size | {config.hidden_size} |
| attention | MLA, {config.num_attention_heads} heads, q-LoRA {config.q_lora_rank}, \
kv-LoRA {config.kv_lora_rank}, nope {config.qk_nope_head_dim}, rope {config.qk_rope_head_dim}, \
value {config.v_head_dim} |
| experts | {config.n_routed_experts} routed, top {config.num_experts_per_tok}, \
{config.n_shared_experts} shared, width {config.moe_intermediate_size} |
| router | sigmoid, correction bias, factor {config.routed_scaling_factor} |
| vocabulary | {config.vocab_size}, one token per digit |
| context | {config.max_position_embeddings} tokens |
| weights | bfloat16; routed experts INT4 in groups of 32 (`pack-quantized`) |
"""


def _made(training: Training) -> Iterator[str]:
    plan, last = training.plan, training.history[-1]
    yield f"""## How it was made

`k2lab train --steps {plan.steps} --work DIR --out DIR` on one CPU core; it goes on where it
stopped.

- Data: conversations of the microworld's training split, generated as they are needed, seed
  {plan.seed}; numbers, pairs and phrasings of the evaluation split never occur in it. Loss on the
  model's own tokens only.
- Tokenizer: byte pairs of {VOCABULARY_TASKS:,} conversations, seed {VOCABULARY_SEED}.
- MuonClip: matrices with Muon at {plan.muon_rate}, the rest with AdamW at {plan.adam_rate};
  warm-up {plan.warmup} steps, then constant, then linear to 2 % over the last
  {plan.decay:.0%} of {plan.steps:,} steps; QK-clip at {plan.tau:g}.
- Balance: selection bias ± {plan.balance_rate} per step.
- INT4: experts are seen quantised during the decay, and exported with the same rule.
- Sittings: {_sittings(training.plans)}.
- {last.tokens:,} tokens in {timedelta(seconds=round(last.seconds))} of computing,
  {last.tokens / last.seconds:,.0f} tokens/s.

| step | tokens | loss (nats per token) | max/mean expert load | largest attention logit |
|---:|---:|---:|---:|---:|"""
    for entry in _spread(training.history):
        yield (
            f"| {entry.step:,} | {entry.tokens:,} | {entry.loss:.4f} | {entry.load:.2f} "
            f"| {entry.largest_logit:.1f} |"
        )


def _sittings(plans: list[tuple[int, int]]) -> str:
    """Where each sitting began, and how many steps were planned then: the schedule follows it."""
    told = [f"from step {step:,} planned for {steps:,} steps" for step, steps in plans]
    return "; ".join(told)


def _able(report: Report) -> Iterator[str]:
    yield f"""
## What it can do

`k2lab eval microworld --n {report.overall.n} --seed {report.seed}`: final answers to unseen tasks
of the evaluation split, greedy, INT4 weights, through the real loop with the real tools. Bounds are
Wilson 95 % intervals.

| family | right | n | 95 % interval |
|---|---:|---:|---|"""
    for name, share in {"**overall**": report.overall, **report.families}.items():
        yield f"| {name} | {share.accuracy:.1%} | {share.n} | {share.low:.1%} – {share.high:.1%} |"


def _files(folder: Path) -> Iterator[str]:
    file = folder / SINGLE
    yield f"""
## Files

`{SINGLE}`: {file.stat().st_size:,} bytes, sha256 `{sha256(file)}`. The sums of all files stand in
`SHA256SUMS`; `k2lab verify` checks them.
"""


def _spread(history: list[Progress]) -> list[Progress]:
    """About `ROWS` entries from the first to the last."""
    stride = max(1, (len(history) - 1) // (ROWS - 1))
    chosen = history[::stride]
    return chosen if chosen[-1] is history[-1] else [*chosen, history[-1]]
