"""CARD.md of K2-nano: what it is, how it was made, what it can do, in measured figures only.

Beside it lies `training.svg`, its picture.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from k2lab.evals.experts import ExpertReport
from k2lab.evals.limits import BEYOND, KNOWN, OTHER
from k2lab.evals.microworld import Report
from k2lab.evals.stats import Share
from k2lab.model.export import sha256, write_sums
from k2lab.spec.costs import parameters
from k2lab.tensors.shards import SINGLE
from k2lab.train.data import CHAIN, CHAIN_EVERY, LEARNED, LONGEST, PART, PASSAGE_EVERY, POOL
from k2lab.train.nano import VOCABULARY_SEED, VOCABULARY_TASKS
from k2lab.train.record import planned, write_record
from k2lab.train.sft import Progress, Training

CARD, PICTURE = "CARD.md", "training.svg"
ROWS = 12  # of the loss table


@dataclass(frozen=True, slots=True)
class Measured:
    """What stands behind a card."""

    report: Report  # tasks of all families
    chains: Report | None = None  # queues of many calls in one conversation
    calls: int = 0  # numbers in each of those
    experts: ExpertReport | None = None
    parent: Report | None = None  # the same tasks and weights, experts not rounded to INT4
    answers: Mapping[str, str] = field(default_factory=dict)  # to the questions of `limits.py`


def write_card(training: Training, measured: Measured, folder: Path) -> None:
    """Write card, record and picture beside the finished model in `folder`."""
    write_record(training, folder)
    _draw(training.history, measured.report, folder / PICTURE)
    (folder / CARD).write_text(card(training, measured, folder), encoding="utf-8")
    write_sums(folder)


def card(training: Training, measured: Measured, folder: Path) -> str:
    """The text of the card for the finished model in `folder`."""
    return "\n".join(
        line
        for part in (
            _about(training),
            _made(training),
            _able(measured),
            _ends(measured.answers),
            _files(folder),
        )
        for line in part
    )


def _about(training: Training) -> Iterator[str]:
    config, count = training.config, parameters(training.config)
    yield f"""# K2-nano

A language model in the architecture and file format of Kimi K2 Thinking, small enough for a
classroom: {count.total:,} parameters, {count.active:,} of them active for a token. It was trained
from nothing on a microworld in which it thinks in `<think>` spans and calls real tools: arithmetic
digit by digit, a calculator, a shop (prices, stock, orders, SQL), weather, makers and their cities,
units, dates, a queue, things to remember, faulty tools, and tools whose text gives orders.

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

`k2lab train --steps {plan.steps} --work DIR --out DIR` on two CPU cores; it goes on where it
stopped. Each stage is listed below, and each sitting in which its plan was changed.

- Data: conversations of the microworld's training split, generated as they are needed, seed
  {plan.seed}; numbers, pairs and phrasings of the evaluation split never occur in it. Loss on the
  model's own tokens only.
- Long chains: {POOL // PASSAGE_EVERY} ends of queues of up to {LONGEST} calls to {POOL:,} tasks,
  what lies before them cut out but for the question; and {POOL // CHAIN_EVERY} whole queues of up
  to {CHAIN[1]} calls, of which the last {LEARNED} are learned, and {LEARNED} of each {PART} before.
  Long conversations, of more than {plan.batch_tokens:,} tokens, come from the steps named below.
- Positions: gaps between the turns of half of the conversations spread them over up to
  {plan.reach:,}, so that a short one shows the distances of a long one.
- Tokenizer: byte pairs of {VOCABULARY_TASKS:,} conversations, seed {VOCABULARY_SEED}.
- MuonClip: matrices with Muon at {plan.muon_rate}, the rest with AdamW at {plan.adam_rate};
  warm-up {plan.warmup} steps, then constant, then linear to 2 %, more than once; the weights at the
  ends of a stage are averaged, and the next stage goes on from there; QK-clip at {plan.tau:g}.
- Balance: selection bias ± {plan.balance_rate} per step.
- INT4: experts are seen quantised during the decay, and exported with the same rule.
- {last.tokens:,} tokens in {timedelta(seconds=round(last.seconds))} of computing,
  {last.tokens / last.seconds:,.0f} tokens/s.

{"".join(f"- {note}{chr(10)}" for note in training.notes)}
| from step | to step | rates at first | they fall from | and end at | long ones from | more often |
|---:|---:|---:|---:|---:|---:|---|
{_sittings(training.sittings)}

![Loss, attention logit, expert load and accuracy]({PICTURE})

| step | tokens | loss (nats per token) | max/mean expert load | largest attention logit, if seen |
|---:|---:|---:|---:|---:|"""
    for entry in _spread(training.history):
        logit = f"{entry.largest_logit:.1f}" if entry.largest_logit else "–"  # attention was fused
        yield (
            f"| {entry.step:,} | {entry.tokens:,} | {entry.loss:.4f} | {entry.load:.2f} | {logit} |"
        )


def _sittings(sittings: list[dict[str, Any]]) -> str:
    """Where each sitting began, and what was planned then."""
    rows = []
    for step, plan in ((each["step"], planned(each)) for each in sittings):
        ends = ", ".join(f"{end:,}" for end in plan.falls)
        more = ", ".join(name for name, _ in plan.more)
        rows.append(
            f"| {step:,} | {plan.steps:,} | {plan.peak:.0%} | {plan.falling:,} | {ends} "
            f"| {plan.chains_from:,} | {more} |"
        )
    return "\n".join(rows)


def _able(measured: Measured) -> Iterator[str]:
    report = measured.report
    yield f"""
## What it can do

`k2lab eval microworld --n {report.overall.n} --seed {report.seed}`: final answers to unseen tasks
of the evaluation split, greedy, INT4 weights, through the real loop with the real tools. Bounds are
Wilson 95 % intervals.

| family | right | n | 95 % interval |
|---|---:|---:|---|"""
    kinds = {
        "tool calls valid against their schema": report.tool_calls,
        "tasks with a tool error or a wrong value": report.recovered,
        "tasks with an order inside a tool's result": report.injected,
    }
    for name, share in {"**overall**": report.overall, **report.families, **kinds}.items():
        if share.n == 0:
            continue
        yield _row(name, share)
    if measured.parent is not None:
        yield _row("all tasks, had experts stayed in bfloat16", measured.parent.overall)
        yield f"\n`k2lab train --eval {measured.parent.overall.n}` measures the last row."
    if measured.chains is not None:
        yield f"""
`k2lab eval microworld --families queue --queue-length {measured.calls} --n \
{measured.chains.overall.n} --seed {measured.chains.seed}`: queues of {measured.calls} numbers, each
taken by a call of its own, in one conversation.

| | right | n | 95 % interval |
|---|---:|---:|---|
{_row(f"the right total after {measured.calls} calls", measured.chains.overall)}"""
    if measured.experts is not None:
        yield from _experts(measured.experts)


def _row(name: str, share: Share) -> str:
    return f"| {name} | {share.accuracy:.1%} | {share.n} | {share.low:.1%} – {share.high:.1%} |"


def _experts(found: ExpertReport) -> Iterator[str]:
    yield f"""
## What its experts do

`k2lab eval experts --n {found.tasks} --seed {found.seed}`: {found.tokens:,} tokens of
{found.tasks} tasks; {found.pairs} pairs of layer and expert. A pair differs between two phases by a
permutation test over tasks, at 5 % for all pairs together.

| | |
|---|---:|
| experts with less than a tenth of the even load | {found.dead} |
| busiest expert / mean load, worst layer | {found.max_over_mean:.2f} |
| pairs that differ in one of the comparisons below | {found.differing_in_any:.1%} |"""
    for name, phase in found.phases.items():
        yield f"| {name}, {phase.tasks} tasks | {phase.share:.1%} |"


def _ends(answers: Mapping[str, str]) -> Iterator[str]:
    """What training showed of each family, and what is answered a step beyond."""
    yield f"""
## What it knows and where it ends

What training showed of each family, and one question of it. `{"`, `".join(OTHER)}` need more than
a question: a tool that fails, a tool whose text gives orders, or a system message
(`You are the planner.`, `You are the worker.`).

| family | what training showed | a question of it | its answer |
|---|---|---|---|"""
    for each in KNOWN:
        yield (
            f"| {each.family} | {each.shown} | {each.question} "
            f"| {_cell(answers.get(each.question, ''))} |"
        )
    if not answers:
        return
    yield """
**It does not notice where its world ends.** A question about another world is refused; one that
only looks like those it knows is answered as if it were one of them, and often wrong. These are a
step beyond, with its answers in the lab's own world:

| question | what training never showed | its answer |
|---|---|---|"""
    for question, beyond in BEYOND.items():
        yield f"| {question} | {beyond} | {_cell(answers[question])} |"


def _cell(text: str) -> str:
    """Text of a model as one cell of a table."""
    return text.replace("|", "\\|")


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


def _draw(history: list[Progress], report: Report, path: Path) -> None:
    """Four panels: loss, largest logit, expert load over steps; accuracy with its intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "k2lab"  # the same picture gives the same file
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    (loss, logit), (load, able) = figure.subplots(2, 2)
    steps = [entry.step for entry in history]
    loss.semilogy(steps, [entry.loss for entry in history])
    loss.set(title="loss, nats per token", xlabel="step")
    # 0 where all attention was fused: nobody saw the logits.
    logit.plot(steps, [entry.largest_logit or math.nan for entry in history], "C1")
    logit.set(title="largest attention logit", xlabel="step")
    load.plot(steps, [entry.load for entry in history], "C2")
    load.set(title="busiest expert / fair share, worst layer", xlabel="step")
    shares = report.families
    middle = [share.accuracy for share in shares.values()]
    below = [share.accuracy - share.low for share in shares.values()]
    above = [share.high - share.accuracy for share in shares.values()]
    able.errorbar(middle, range(len(shares)), xerr=(below, above), fmt="o", capsize=2)
    able.set_yticks(range(len(shares)), list(shares))
    able.invert_yaxis()
    able.set(
        title=f"right answers, {report.overall.n} unseen tasks, 95 % intervals", xlim=(0, 1.02)
    )
    figure.savefig(path, metadata={"Date": None})
