"""Turns written by hand: the same for all weights."""

from pathlib import Path

from k2lab.agent.tools import tool
from k2lab.lab import Lab
from k2lab.lessons.script import call, scripted


def test_a_script_is_written_by_any_network(small_checkpoint: Path) -> None:
    lab, made = Lab.open(small_checkpoint), list[str]()

    @tool
    def note(text: str) -> str:
        """Keep a text."""
        made.append(text)
        return "kept"

    turns = (f"<think>Now.</think>{call('note', text='é')}", "Done.")
    run = lab.run("Go.", tools=[note], sampler=scripted(lab.tokenizer, *turns)).wait(20)
    assert made == ["é"]
    assert run.trace.answer == "Done." and run.trace.calls[0].content == "kept"
    assert run.trace.text("thinking") == "Now."
