"""The Event union: one frozen record of each thing that happens in a run.

`generate()` and the agent loop yield events; printing, chat history, Trace and live widgets are
folds over that one stream. A token's *index* counts all tokens of the run, prompt and tool results
included, from 0. Match exhaustively: `match event: case TokenChosen(): …`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from k2lab.errors import InputError
from k2lab.text.messages import Kind as Kind  # re-exported: the kind of a token in an event

KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds in the order of their codes in traces and frames (`marker` is 0)."""

CODE: dict[str, int] = {kind: code for code, kind in enumerate(KINDS)}
"""Kind → its code."""

Reason = Literal["answer", "length", "stopped", "budget", "loop", "error", "context"]
"""Why a run ended: a final answer, the token limit, the person, a budget, going round in circles,
an error, or a context that is full."""


@dataclass(frozen=True, slots=True)
class PromptRead:
    """Tokens that were given, not chosen, went through the network (prompt or tool result)."""

    start: int  # index of the first of them
    ids: tuple[int, ...]
    texts: tuple[str, ...]  # one text piece per token; joined they are the prompt
    kinds: tuple[Kind, ...]
    seconds: float  # wall time of the prefill
    context: int = 0  # index of the first token that is remembered: more than 0 once compacted
    agent: str = ""  # whose run it is, where several share a trace


@dataclass(frozen=True, slots=True)
class TokenChosen:
    """The model chose one token."""

    index: int
    id: int
    text: str  # may be empty while a multi-byte character is incomplete
    kind: Kind
    logprob: float  # natural logarithm, of the distribution before temperature
    entropy: float  # nats, of the distribution before temperature
    top: tuple[tuple[int, str, float], ...]  # five likeliest: (id, text, probability), falling
    seconds: float  # since the run began


@dataclass(frozen=True, slots=True)
class Routed:
    """Which experts computed the tokens `start … start + n − 1` (as inputs), in every MoE layer."""

    start: int
    experts: np.ndarray  # uint16 [token, layer, slot], rank order: the strongest choice first
    weights: np.ndarray  # uint8 [token, layer, slot], mixing weight / routed_scaling_factor × 255
    margin: np.ndarray  # float16 [token, layer], choice score of the last chosen − first not chosen
    seconds: float = 0.0  # that recording this took


@dataclass(frozen=True, slots=True)
class ExpertsMoved:
    """What an offloading store brought for the tokens `start … start + tokens − 1` (as inputs).

    A miss is an expert that had to be brought; every other request, one per (token, slot), is a
    hit. `loads` tells the residency itself: replayed in order, it says who lies in which slot.
    """

    start: int
    tokens: int
    slots: int  # per MoE layer
    hits: np.ndarray  # int64 [layer]
    misses: np.ndarray  # int64 [layer]
    stall: np.ndarray  # float64 [layer], seconds that the network waited for experts
    loads: np.ndarray  # int32 [load, 4]: MoE layer (from 0), slot, expert, evicted expert or −1
    bytes_moved: dict[str, int]  # by link, such as "disk→host"


@dataclass(frozen=True, slots=True)
class Captured:
    """Values inside the network for the tokens `start … start + n − 1` (as inputs), by name.

    Names and their meaning: `trace/captured.py`.
    """

    start: int
    heads: tuple[int, ...]  # of the queries' head axis
    layers: dict[str, tuple[int, ...]]  # the layers of the second axis
    arrays: dict[str, np.ndarray]  # [token, layer, …]; bfloat16 as its bits, uint16
    seconds: float = 0.0  # that recording this took


@dataclass(frozen=True, slots=True)
class Dropped:
    """Captured values of the tokens before `first` were given up, to stay within the budget."""

    first: int
    budget: int  # bytes


@dataclass(frozen=True, slots=True)
class ToolAsked:
    """The model asked for a tool. `key` is unique in the run; the wire id need not be."""

    key: str
    id: str
    name: str
    arguments: str  # raw JSON text as the model wrote it
    index: int  # the token with which the call ended


@dataclass(frozen=True, slots=True)
class ToolAnswered:
    """A tool call ended, well (`ok`) or with an error text that the model gets to read."""

    key: str
    name: str
    content: str
    ok: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Misread:
    """The model wrote something in the form of a tool call that cannot be run."""

    problem: str  # kind of parse error, e.g. `truncated`
    text: str


@dataclass(frozen=True, slots=True)
class Nudged:
    """A turn that was neither an answer nor a call; the model gets to read why it was asked on."""

    why: Literal["thinking only", "damaged call"]
    text: str  # what the model reads


@dataclass(frozen=True, slots=True)
class Retried:
    """Something failed in passing and is tried again: a call by its key, or a `turn`."""

    key: str
    attempt: int  # the one that begins, from 2
    why: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same calls had the same results again, and what was done about it."""

    times: int
    response: Literal["warned", "urged", "tools withdrawn", "ended"]


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """A call waits for a person. `digest` stands for the run, the step, the tool, the arguments."""

    key: str
    name: str
    arguments: str  # canonical JSON: what the person sees is what would be run
    digest: str
    why: str  # the policy's reason to ask


@dataclass(frozen=True, slots=True)
class ApprovalGiven:
    """Somebody decided about a call that waited."""

    key: str
    digest: str
    allowed: bool
    by: str  # who decided, or why nobody did


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn ended without tool calls: the answer and the thinking that led to it."""

    content: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ended; always the last event."""

    reason: Reason
    detail: str  # empty, or a sentence for the person
    tokens: int  # tokens chosen by the model
    seconds: float


Event = (
    PromptRead
    | TokenChosen
    | Routed
    | ExpertsMoved
    | Captured
    | Dropped
    | ToolAsked
    | ToolAnswered
    | Misread
    | Nudged
    | Retried
    | Repeated
    | ApprovalAsked
    | ApprovalGiven
    | Answered
    | Stopped
)


def code_of(kind: str) -> int:
    """The code of a kind; InputError where there is no such kind."""
    if kind not in CODE:
        there = ", ".join(CODE)
        raise InputError(
            f"No part of a run is {kind!r}.", expected=f"one of {there}.", mend="Name one."
        )
    return CODE[kind]
