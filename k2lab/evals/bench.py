"""Decode speed, side by side with transformers on the same machine in the same minute.

Both read the same prompt and decode the same number of tokens greedily, one after the other in
turns; medians are compared. k2lab is measured as it is used: events, the five likeliest tokens and
route capture on. The peer runs the exported checkpoint as it is used, by its own `generate`, with
whichever of its expert implementations, dtypes and thread counts a short trial finds fastest. The
same peer in a bare loop over its forward, with nothing reported, is measured beside it. Not here:
prefill, batches, GPUs.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import product
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from k2lab.engine.capture import OFF, ROUTE
from k2lab.engine.events import TokenChosen
from k2lab.engine.generate import Prompt, Settings, generate
from k2lab.errors import MissingError
from k2lab.model.cache import LatentCache
from k2lab.model.export import export_transformers
from k2lab.model.k2 import K2
from k2lab.model.load import load_model
from k2lab.text.template import render
from k2lab.text.tokenizer import Tokenizer

QUESTION = "What do 3 x lamp and 2 x rope cost?"
THREADS = (1, 2)  # of torch; the peer takes what is faster for it
TRIAL, TRIALS = 16, 3  # tokens of a trial that chooses among variants, and how many there are
IMPLEMENTATIONS = ("grouped_mm", "batched_mm", "eager")  # the peer's ways to compute experts
FIRST_TOKEN = """
import time
began = time.perf_counter()
import k2lab
for event in k2lab.load({path}).events({question!r}, max_tokens=1):
    if type(event).__name__ == "TokenChosen":
        print(time.perf_counter() - began)
"""


@dataclass(frozen=True, slots=True)
class Decode:
    """Tokens per second of both sides, medians over the repeats."""

    k2lab_tok_s: float
    peer_tok_s: float
    ratio: float  # k2lab / peer: above 1, k2lab is faster
    forward_tok_s: float  # the peer's forward alone, in a loop that reports nothing
    forward_ratio: float  # k2lab / that
    k2lab: str  # its dtype
    peer: str  # version, expert implementation, dtype and threads
    capture_cost: float  # share of the time that route capture adds: on / off − 1, side by side
    first_token_seconds: float  # from `import k2lab` to the first token, in a fresh process
    tokens: int  # decoded in each repeat
    prompt_tokens: int
    repeats: int
    same_tokens: int  # leading tokens on which both sides agree


Decoder = Callable[[int], tuple[float, list[int]]]
"""Decodes so many tokens: seconds of decoding alone, and the tokens."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run one side."""

    name: str
    threads: int
    decode: Decoder

    def run(self, tokens: int) -> tuple[float, list[int]]:
        """Tokens per second, and the tokens."""
        torch.set_num_threads(self.threads)
        seconds, ids = self.decode(tokens)
        return tokens / seconds, ids


def decode(folder: Path, *, tokens: int = 128, repeats: int = 5) -> Decode:
    """The comparison for a checkpoint small enough to stand in memory twice."""
    before = torch.get_num_threads()
    model, tokenizer = load_model(folder), Tokenizer.from_folder(folder)
    segments = render([{"role": "user", "content": QUESTION}], system=None)
    prompt = Prompt.of(segments, tokenizer)
    try:
        with _peers(folder, prompt.ids) as peers:
            forwards = {each.name: each for each in peers[1]}
            own = _fastest([_own(model, tokenizer, prompt, before, capture=True)])
            bare = _own(model, tokenizer, prompt, before, capture=False)
            peer = _fastest(peers[0])
            speeds: dict[str, list[float]] = {"own": [], "bare": [], "peer": [], "forward": []}
            for _ in range(repeats):
                speed, ours = own.run(tokens)
                speeds["own"].append(speed)
                speeds["bare"].append(bare.run(tokens)[0])
                speed, theirs = peer.run(tokens)
                speeds["peer"].append(speed)
                speeds["forward"].append(forwards[peer.name].run(tokens)[0])
    finally:
        torch.set_num_threads(before)
    medians = {name: median(each) for name, each in speeds.items()}
    agree = [mine == other for mine, other in zip(ours, theirs, strict=True)]
    return Decode(
        k2lab_tok_s=medians["own"],
        peer_tok_s=medians["peer"],
        ratio=medians["own"] / medians["peer"],
        forward_tok_s=medians["forward"],
        forward_ratio=medians["own"] / medians["forward"],
        k2lab=own.name,
        peer=peer.name,
        capture_cost=median(map(truediv, speeds["bare"], speeds["own"])) - 1,
        first_token_seconds=median(first_token(folder) for _ in range(3)),
        tokens=tokens,
        prompt_tokens=len(prompt.ids),
        repeats=repeats,
        same_tokens=agree.index(False) if False in agree else len(agree),
    )


def first_token(folder: Path) -> float:
    """Seconds from `import k2lab` to the first token, in a fresh process."""
    code = FIRST_TOKEN.format(path=repr(str(folder)), question=QUESTION)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _own(
    model: K2, tokenizer: Tokenizer, prompt: Prompt, threads: int, *, capture: bool
) -> Variant:
    """k2lab, which chooses among its threads itself."""

    def run(tokens: int) -> tuple[float, list[int]]:
        settings = Settings(max_tokens=tokens, capture=ROUTE if capture else OFF)
        ids: list[int] = []
        began = 0.0
        for event in generate(model, tokenizer, prompt, LatentCache(model.config), settings):
            if isinstance(event, TokenChosen):
                ids.append(event.id)
            elif not ids:
                began = time.perf_counter()  # the prompt, or its routing, was reported
        return time.perf_counter() - began, ids

    dtype = str(getattr(model.store, "dtype", "")).removeprefix("torch.")
    return Variant(f"k2lab, {dtype}", threads, run)


def _fastest(variants: Sequence[Variant]) -> Variant:
    """The variant with the best of its trials, which take turns; the first turn warms up."""
    turns = [[variant.run(TRIAL)[0] for variant in variants] for _ in range(TRIALS + 1)]
    best = [max(speeds) for speeds in zip(*turns[1:], strict=True)]
    return variants[best.index(max(best))]


@contextmanager
def _peers(folder: Path, prompt: Sequence[int]) -> Iterator[tuple[list[Variant], list[Variant]]]:
    """The peer's variants by `generate` and by forward alone; the export is removed afterwards."""
    try:
        import transformers
    except ImportError as error:
        raise MissingError(
            "The package transformers is not installed.",
            expected="the peer of the comparison.",
            mend="Install it with `pip install k2lab[test]`.",
        ) from error
    transformers.utils.logging.disable_progress_bar()
    generated: list[Variant] = []
    forwards: list[Variant] = []
    with TemporaryDirectory(prefix="k2lab-peer-") as place:
        exported = export_transformers(folder, Path(place) / "export")
        for dtype, implementation in product((torch.float32, torch.bfloat16), IMPLEMENTATIONS):
            model = transformers.DeepseekV3ForCausalLM.from_pretrained(
                exported, dtype=dtype, experts_implementation=implementation
            ).eval()
            kind = f"{implementation}, {str(dtype).removeprefix('torch.')}"
            name = f"transformers {transformers.__version__}, {kind}"
            for variants, run in (
                (generated, _by_generate(model, prompt)),
                (forwards, _by_forward(model, prompt)),
            ):
                variants += [Variant(f"{name}, threads {count}", count, run) for count in THREADS]
        yield generated, forwards


class _Clock:
    """A streamer in the sense of transformers: keeps when each put happened."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """The prompt first, then each token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def _by_generate(model: Any, prompt: Sequence[int]) -> Decoder:
    """Greedy decoding by the peer's own `generate`, over the end of the answer."""
    model.generation_config.eos_token_id = None
    given = torch.tensor([list(prompt)])

    def run(tokens: int) -> tuple[float, list[int]]:
        clock = _Clock()
        count = tokens + 1  # the first follows from the prompt alone, which is not timed
        made = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=count,
            streamer=clock,
        )
        ids: list[int] = made[0, given.shape[1] :].tolist()
        return clock.times[-1] - clock.times[1], ids[:tokens]

    return run


def _by_forward(model: Any, prompt: Sequence[int]) -> Decoder:
    """Greedy decoding by the peer's forward and cache, with nothing around them."""
    given = torch.tensor([list(prompt)])
    # Its argument was renamed in transformers 5.24.
    kept = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def run(tokens: int) -> tuple[float, list[int]]:
        ids: list[int] = []
        with torch.inference_mode():
            state = model(given, use_cache=True, logits_to_keep=1)
            began = time.perf_counter()
            for _ in range(tokens):
                chosen = state.logits[:, -1:].argmax(-1)
                ids.append(int(chosen))
                state = model(chosen, **{kept: state.past_key_values}, use_cache=True)
            return time.perf_counter() - began, ids

    return run
