"""The teacher's side of a conversation: it thinks, calls tools that really run, and answers.

A call that fails is noticed in the next thought and made again, whatever the family. Messages
are in the OpenAI form, with `reasoning_content` for the thinking.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k2lab.agent.tools import call
from k2lab.world.tools import World

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One call the teacher wants to make; `need` names it in the thought before."""

    need: str
    name: str
    arguments: Mapping[str, str | int]


class Conversation:
    """A growing conversation of the teacher with one world."""

    def __init__(self, world: World, question: str) -> None:
        self.messages: list[Message] = [{"role": "user", "content": question}]
        self._tools = {tool.name: tool for tool in world.tools()}
        self._calls = 0

    def ask(self, thought: str, asks: Sequence[Ask]) -> list[str]:
        """The results of calls made in one turn, in order; failed ones are repeated."""
        results: dict[int, str] = {}
        missing = list(range(len(asks)))
        while missing:
            outcomes = self._turn(thought, [asks[index] for index in missing])
            results.update({i: text for i, (text, ok) in zip(missing, outcomes, strict=True) if ok})
            failed = [(i, text) for i, (text, ok) in zip(missing, outcomes, strict=True) if not ok]
            missing = [index for index, _ in failed]
            if failed:
                needs = " and ".join(asks[index].need for index in missing)
                thought = f"{failed[0][1]} for {needs}. Try again."
        return [results[index] for index in range(len(asks))]

    def answer(self, thought: str, content: str) -> None:
        """The last turn: a thought and the answer."""
        self.messages.append(
            {"role": "assistant", "reasoning_content": thought, "content": content}
        )

    def _turn(self, thought: str, asks: Sequence[Ask]) -> list[tuple[str, bool]]:
        ids = [f"functions.{ask.name}:{self._calls + k}" for k, ask in enumerate(asks)]
        self._calls += len(asks)
        texts = [json.dumps(dict(ask.arguments)) for ask in asks]
        calls = [
            {"id": key, "type": "function", "function": {"name": ask.name, "arguments": text}}
            for key, ask, text in zip(ids, asks, texts, strict=True)
        ]
        self.messages.append(
            {
                "role": "assistant",
                "reasoning_content": thought,
                "content": "",
                "tool_calls": calls,
            }
        )
        outcomes = []
        for key, ask, text in zip(ids, asks, texts, strict=True):
            outcome = call(self._tools[ask.name], text)
            outcomes.append((outcome.content, outcome.ok))
            self.messages.append(
                {
                    "role": "tool",
                    "tool_call_id": key,
                    "name": ask.name,
                    "content": outcome.content,
                }
            )
        return outcomes


def need(asks: Sequence[Ask]) -> str:
    """The thought before calls: it names what is needed, so that the call copies from it."""
    return f"Need {' and '.join(ask.need for ask in asks)}."
