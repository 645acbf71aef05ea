"""Turns written by hand in the place of a model's, so that a lesson shows the same for all weights.

    run = lab.run("Go.", tools=[add], sampler=scripted(lab.tokenizer, call("add", a=2, b=3), "5"))

The network runs all the same; only the choice of tokens is the script's. After the script every
turn ends at once.
"""

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from k2lab.engine.sampling import Sampler
from k2lab.text.template import Segment
from k2lab.text.tokenizer import Tokenizer

END = "<|im_end|>"


def call(name: str, /, **arguments: Any) -> str:
    """A turn that calls a tool.

    >>> call("add", a=2).count("functions.add:0")
    1
    """
    asked = json.dumps(arguments, ensure_ascii=False)
    return (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0"
        f"<|tool_call_argument_begin|>{asked}<|tool_call_end|><|tool_calls_section_end|>"
    )


def scripted(tokenizer: Tokenizer, *turns: str) -> Sampler:
    """A sampler that writes these turns, one after the other, for one run."""
    segments = [Segment(f"{turn}{END}", markers=True, kind="answer") for turn in turns]
    left: Iterator[int] = iter(tokenizer.encode_segments(segments))
    end = tokenizer.special(END)

    def choose(logits: Tensor) -> int:
        return next(left, end)

    return choose
