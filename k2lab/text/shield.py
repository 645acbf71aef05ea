"""Keeps ordinary tokens that spell a marker from being read as one.

A special token and the same characters written by ordinary tokens look alike as text, but only the
first is a marker: a model that repeats `<|tool_call_begin|>` out of a web page asks for nothing.
Text of ordinary tokens is shielded on its way into the parser, and the finished turn unshielded.
"""

from dataclasses import replace

from k2lab.text.parse import Turn

SHIELD = "\ufdd0"  # a noncharacter: Unicode keeps it for use inside programs, never in texts


def shielded(text: str) -> str:
    """The text with every `<` followed by the shield, so that no marker can match."""
    return text.replace("<", f"<{SHIELD}")


def unshielded(turn: Turn) -> Turn:
    """The turn with its texts as the model wrote them."""
    return Turn(
        _bare(turn.content),
        _bare(turn.reasoning),
        tuple(
            replace(call, name=_bare(call.name), arguments=_bare(call.arguments), id=_bare(call.id))
            for call in turn.calls
        ),
        tuple(replace(error, text=_bare(error.text), id=_bare(error.id)) for error in turn.errors),
    )


def _bare(text: str) -> str:
    return text.replace(f"<{SHIELD}", "<")
