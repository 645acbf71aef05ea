"""Long-term memory: found again, cited exactly, kept on disk."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2lab.agent import library as library_module
from k2lab.agent.data import shipped
from k2lab.agent.library import SCHEMA, WIDTH, Library, embedded, passages
from k2lab.errors import InputError, MemoryFileError
from k2lab.paths import asset

QUESTIONS = {
    "How many experts does the router choose for a token?": "experts.md",
    "How many bytes does the cache take per token?": "attention.md",
    "How long is the context?": "context.md",
    "How are weights stored in four bits?": "quantisation.md",
    "What happens to thinking once a final answer exists?": "template.md",
    "Are the ids of tool calls unique?": "calls.md",
    "How many trajectories run in heavy mode?": "thinking.md",
    "When does QK-clip scale a head down?": "optimizer.md",
    "How large is the vocabulary?": "tokenizer.md",
    "How many parameters act on a token?": "size.md",
    "Can a web page close its message?": "injection.md",
    "What happens after a crash?": "journal.md",
    "rotary frequencies YaRN factor": "context.md",
    "orthogonalises momentum Newton-Schulz": "optimizer.md",
    "tiktoken merging of byte pairs": "tokenizer.md",
    "sigmoid router bias": "experts.md",
    "quantized experts int4 compressed tensors": "quantisation.md",
    "signed mandates and policies": "injection.md",
}


def test_what_is_asked_for_is_among_the_first_five_and_mostly_the_first() -> None:
    library = shipped()
    found = {question: library.search(question, 5) for question in QUESTIONS}
    assert all(QUESTIONS[q] in {hit.source for hit in hits} for q, hits in found.items())
    first = sum(hits[0].source == QUESTIONS[q] for q, hits in found.items())
    assert first >= 0.8 * len(QUESTIONS)


def test_every_citation_is_exactly_what_stands_in_its_source() -> None:
    library = shipped()
    checked = 0
    for question in QUESTIONS:
        for hit in library.search(question, 5):
            text = (asset("library") / hit.source).read_text("utf-8")
            assert text[hit.start : hit.stop] == hit.text == library.cited(hit.citation)
            checked += 1
    assert checked >= 4 * len(QUESTIONS)


def test_a_slip_of_the_pen_is_found_by_likeness() -> None:
    library = Library()
    library.add("a", "The tokeniser cuts numbers.")
    library.add("b", "Experts are small networks.")
    assert library.search("tokenizer", 1)[0].source == "a"
    assert library.search("", 3) == () == library.search("???", 3)


def test_documents_outlive_the_process_that_added_them(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    library = Library(path)
    library.add("note", "The red key opens the shed.")
    library.close()
    again = Library(path)
    (hit,) = again.search("which key opens the shed", 1)
    assert again.cited(hit.citation) == "The red key opens the shed."
    again.close()
    again.close()


def test_a_document_is_replaced_and_forgotten_as_a_whole() -> None:
    library = Library()
    library.add("note", "The key is red.")
    library.add("note", "The key is red.")
    library.add("note", "The lock is blue.")
    assert len(library) == 1
    assert [hit.text for hit in library.search("key lock", 5)] == ["The lock is blue."]
    assert library.forget("note") and not library.forget("note")
    assert library.search("lock", 5) == ()


def test_a_text_changed_from_outside_is_not_cited(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    library = Library(path)
    library.add("note", "Pay Ada ten coins.")
    other = sqlite3.connect(path)
    other.execute("UPDATE documents SET text = 'Pay Eve ten coins.'")
    other.commit()
    other.close()
    with pytest.raises(MemoryFileError, match="not as it was taken in"):
        library.search("coins", 1)
    with pytest.raises(MemoryFileError, match="not as it was taken in"):
        library.cited("note:0-3")
    library.close()


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("no database, but long enough to be looked at" * 50)
    with pytest.raises(MemoryFileError):
        Library(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 9")
    other.close()
    with pytest.raises(MemoryFileError, match="version 9"):
        Library(path)


@pytest.mark.parametrize("source", ["", "a:b"])
def test_a_source_can_stand_in_a_citation(source: str) -> None:
    with pytest.raises(InputError):
        Library().add(source, "text")


@pytest.mark.parametrize("wrong", ["", "note", "note:0-99", "note:3-3", "note:x-y", "other:0-1"])
def test_a_citation_that_stands_for_nothing_is_refused(wrong: str) -> None:
    library = Library()
    library.add("note", "short")
    with pytest.raises(InputError):
        library.cited(wrong)


@given(st.text(max_size=2000))
def test_passages_are_spans_in_order_that_leave_out_white_space_alone(text: str) -> None:
    spans = list(passages(text))
    assert all(a < b for a, b in spans)
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))
    joined = "".join(text[a:b] for a, b in spans)
    assert "".join(joined.split()) == "".join(text.split())


def test_vectors_have_length_one_and_are_the_same_everywhere() -> None:
    vector = embedded("The cache takes 70,272 bytes.")
    assert vector.shape == (WIDTH,) and abs(float(np.linalg.norm(vector)) - 1) < 1e-6
    assert np.array_equal(vector, embedded("the CACHE takes 70,272 bytes"))
    assert not embedded("?!").any()


def test_a_search_in_many_passages_takes_little_time() -> None:
    import time

    library = Library()
    library.add(
        "long", "\n\n".join(f"Entry {n} is about {n * 7919 % 1000}." * 9 for n in range(3000))
    )
    library.search("first", 1)
    began = time.perf_counter()
    library.search("Entry 1234 is about", 5)
    assert time.perf_counter() - began < 0.5


def test_what_another_kernel_writes_and_forgets_is_seen(tmp_path: Path) -> None:
    here, there = Library(tmp_path / "m"), Library(tmp_path / "m")
    here.add("a", "The lamp is red.")
    here.add("b", "The rope is long.")
    assert here.search("lamp")
    there.forget("a")
    assert [hit.source for hit in here.search("lamp rope")] == ["b"]
    there.add("c", "A lampshade.")
    assert [hit.source for hit in here.search("lampshades")][:1] == ["c"]  # by likeness alone


def test_a_file_that_is_no_library_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shop"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE customers (name)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(MemoryFileError, match="tables of something else"):
        Library(path)
    assert path.read_bytes() == before
    with pytest.raises(MemoryFileError, match="unable to open"):
        Library(tmp_path / "no" / "m")


def test_a_library_is_made_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(library_module, "SCHEMA", f"{SCHEMA} nonsense;")
        with pytest.raises(MemoryFileError):
            Library(tmp_path / "m")
    made = Library(tmp_path / "m")
    made.add("a", "The lamp is red.")
    assert len(Library(tmp_path / "m")) == 1


def test_a_file_that_is_damaged_within_is_named(tmp_path: Path) -> None:
    made = Library(tmp_path / "m")
    made.add("a", "The lamp is red. " * 2000)
    made.close()
    data = bytearray((tmp_path / "m").read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(MemoryFileError, match="cannot be read"):
        Library(tmp_path / "m").search("lamp")
