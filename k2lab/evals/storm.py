"""Three hundred steps in a storm: seeded faults on every fourth, and a count of what arrived.

A scripted model (`puppet.py`) wants the entries 0 … n − 1 kept, one call each, and asks again for
whatever did not arrive. Faults strike the first attempt: a server that answers 429 or 500 or breaks
off in the middle of a turn, a call that is cut off, arguments that are not JSON, an unknown tool, a
wire id that was used before, a tool that is late, and parallel results in the wrong order. Right
is: each entry kept once, its result read once, no thought of the run lost. Not here: kills
(`kills.py`).
"""

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

from k2lab.agent.budget import Budget
from k2lab.agent.calling import cancellation
from k2lab.agent.loop import Mind, converse
from k2lab.agent.terms import Terms
from k2lab.agent.tools import Tool, tool
from k2lab.engine.capture import LEVELS
from k2lab.engine.events import Stopped, ToolAnswered, ToolAsked
from k2lab.engine.generate import Settings
from k2lab.errors import TransientError
from k2lab.evals.puppet import Puppet, calls
from k2lab.paths import asset
from k2lab.spec.config import K2Config
from k2lab.text.tokenizer import Tokenizer

Fault = Literal[
    "429", "500", "disconnect", "truncated", "malformed", "unknown tool", "duplicate id",
    "late", "out of order",
]  # fmt: skip
FAULTS: tuple[Fault, ...] = get_args(Fault)

SHARE = 0.3  # of the entries whose first attempt is struck
CONTEXT = 200_000  # tokens: the storm is about the loop, not about a model's memory
PARALLEL = 3  # entries of a parallel step, the last of every ten
LATE = 0.25  # seconds that the reading tool may take

_KEPT = re.compile(r"## Return of [^\n]*\nkept (\d+)")
_ASKED = re.compile(r'\{"n": (\d+)\}?')


@dataclass(frozen=True, slots=True)
class Storm:
    """What became of a run of calls."""

    seed: int
    calls: int  # wanted
    kept_once: int  # entries that were kept once and whose result was read once
    lost: int  # entries that were not kept, or whose result was not read
    twice: int  # entries that were kept, or read as kept, more than once
    wrong: int  # results that came back under another call
    thoughts_lost: int
    steps: int  # turns of the model with calls
    struck: Mapping[str, int]  # faults that struck, by kind
    reason: str  # why the run ended
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether nothing was lost, doubled or mixed up."""
        return self.kept_once == self.calls and self.reason == "answer"


class _Weather:
    """The script of the model and of what strikes it."""

    def __init__(self, seed: int, wanted: int) -> None:
        self.seed, self.wanted = seed, wanted
        self.struck: Counter[str] = Counter()
        self.kept: Counter[int] = Counter()
        self._pending: dict[int, Fault] = {}  # by the turn's number, until it has struck
        self._fault: Fault | None = None

    def fault_of(self, entry: int) -> Fault | None:
        """What strikes the first attempt at an entry."""
        draw = Random(f"storm {self.seed} {entry}")
        if draw.random() >= SHARE:
            return None
        if entry % 10 == 10 - PARALLEL:
            return draw.choice(("late", "out of order"))
        return draw.choice(FAULTS[:-2])

    def reply(self, text: str) -> str:
        """The model's next turn."""
        kept = {int(n) for n in _KEPT.findall(text)}
        entry = next((n for n in range(self.wanted) if n not in kept), None)
        if entry is None:
            return f"<think>All {self.wanted} are kept.</think>Done."
        first = f"Entry {entry} next." not in text
        self._fault = self.fault_of(entry) if first else None
        thought = f"<think>Entry {entry} next.</think>"
        if entry % 10 == 10 - PARALLEL:
            group = range(entry, min(entry + PARALLEL, self.wanted))
            return thought + calls(*(("look", str(n), f'{{"n": {n}}}') for n in group))
        name, number, arguments = "note", str(entry), f'{{"n": {entry}}}'
        match self._fault:
            case "truncated":
                self.strike("truncated")
                whole = calls((name, number, arguments))
                return thought + whole[: whole.index("}")]
            case "malformed":
                self.strike("malformed")
                arguments = f'{{"n": {entry}'
            case "unknown tool":
                self.strike("unknown tool")
                name = "jot"
            case "duplicate id":
                self.strike("duplicate id")
                number = "0"
        return thought + calls((name, number, arguments))

    def before(self, puppet: Puppet) -> None:
        """What strikes a forward: a server that refuses, or a line that breaks in the turn."""
        match self._fault:
            case "disconnect" if puppet.written > 9:
                self._fault = None
                self.strike("disconnect")
                raise TransientError("The connection was lost.")
            case "429" | "500" as status if puppet.written > 0:
                # The turn's plan is known only once its prompt was read, so the refusal stands
                # at the first token: for the loop the same, a request without an answer.
                self._fault = None
                self.strike(status)
                raise TransientError(f"The server answered {status}.", after=0.01)

    def strike(self, fault: Fault) -> None:
        """Count a fault, once."""
        self.struck[fault] += 1
        if self._fault == fault and fault in ("late", "out of order"):
            self._fault = None

    def tools(self) -> list[Tool]:
        """`note` changes the world, `look` reads; both say what they kept."""

        @tool(effect="writes", trusted=True)
        def note(n: int) -> str:
            """Keep an entry."""
            self.kept[n] += 1
            return f"kept {n}"

        @tool(effect="reads", trusted=True, timeout=LATE)
        def look(n: int) -> str:
            """Look an entry up, which keeps it too."""
            fault = self.fault_of(n - n % 10 + 10 - PARALLEL)
            if fault == "late" and n % 10 == 10 - PARALLEL and not self.struck[f"late {n}"]:
                self.struck[f"late {n}"] = 1
                self.strike("late")
                cancellation().wait(10 * LATE)
                return "too late"
            if fault == "out of order":
                if n % 10 == 10 - PARALLEL:
                    self.strike("out of order")
                time.sleep(LATE / 4 * (9 - n % 10) / PARALLEL)
            self.kept[n] = 1  # it only reads: a call that was given up may have read, too
            return f"kept {n}"

        return [note, look]


def storm(seed: int, steps: int = 300) -> Storm:
    """One run of so many steps, with more calls than that, in the weather of a seed."""
    wanted = -(-10 * steps // (11 - PARALLEL))
    folder = asset("k2-nano")
    config = replace(K2Config.from_json(folder), max_position_embeddings=CONTEXT)
    tokenizer = Tokenizer.from_folder(folder)
    weather = _Weather(seed, wanted)
    puppet = Puppet(config, tokenizer, weather.reply, weather.before)
    mind = Mind(puppet, tokenizer)  # type: ignore[arg-type]
    settings = Settings(max_tokens=CONTEXT, capture=LEVELS["off"])
    messages = [{"role": "user", "content": f"Keep the entries 0 to {wanted - 1}."}]
    began, asked, read = time.perf_counter(), dict[str, str](), Counter[int]()
    wrong, turns, reason = 0, set[str](), ""
    terms = Terms(budget=Budget(steps=3 * wanted))
    for event in converse(mind, messages, weather.tools(), settings, terms):
        match event:
            case ToolAsked():
                asked[event.key] = event.arguments
                turns.add(event.key.partition(".")[0])
            case ToolAnswered(ok=True):
                found = _ASKED.fullmatch(asked[event.key])
                wrong += found is None or event.content != f"kept {found[1]}"
                read[int(event.content.removeprefix("kept "))] += 1
            case Stopped():
                reason = event.reason
    entries, text = range(wanted), puppet.text
    firsts = [n for n in entries if n % 10 <= 10 - PARALLEL]
    kinds: dict[str, int] = {kind: weather.struck[kind] for kind in FAULTS}
    return Storm(
        seed=seed,
        calls=wanted,
        kept_once=sum(weather.kept[n] == 1 == read[n] for n in entries),
        lost=sum(not weather.kept[n] or not read[n] for n in entries),
        twice=sum(weather.kept[n] > 1 or read[n] > 1 for n in entries),
        wrong=wrong,
        thoughts_lost=sum(f"Entry {n} next." not in text for n in firsts),
        steps=len(turns),
        struck=kinds,
        reason=reason,
        seconds=time.perf_counter() - began,
    )
