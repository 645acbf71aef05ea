"""The trace file: what goes in comes out, old files keep opening, and bad ones say what they are."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as packed

import k2lab
from k2lab.engine.events import (
    Answered,
    Captured,
    Dropped,
    ExpertsMoved,
    Misread,
    PromptRead,
    Routed,
    Stopped,
    TokenChosen,
    ToolAnswered,
    ToolAsked,
)
from k2lab.errors import MissingError, TraceError
from k2lab.trace.figures import figures
from k2lab.trace.file import HIDDEN, KEY, VERSION, open_trace, write_whole
from k2lab.trace.mapped import read
from k2lab.trace.synthetic import synthetic
from k2lab.trace.trace import About, Facts, Trace

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = About("small", layers=3, dense_layers=1, experts=16, slots=4, scaling=2.5, vocab=100)


def example() -> Trace:
    """A trace with something of everything."""
    trace = Trace(ABOUT)
    trace.append(PromptRead(0, (7, 8), ("<|u|>", "Ä€😀"), ("marker", "user"), 0.5))
    trace.append(_routed(0, 2))
    trace.append(_captured(0, 2))
    top = ((5, "x", 0.75), (6, "</script>", 0.125))
    trace.append(TokenChosen(2, 5, "x", "thinking", -0.25, 0.5, top, 0.1))
    trace.append(_routed(2, 1))
    trace.append(_captured(2, 1))
    trace.append(Dropped(1, 1000))
    trace.append(_moved(2))
    trace.append(TokenChosen(3, 9, "", "call", -0.5, 1.5, (), 0.2))
    trace.append(ToolAsked("0.0", "functions.calc:0", "calc", '{"a": "secret"}', 3))
    trace.append(ToolAnswered("0.0", "calc", "42 secret", ok=True, seconds=0.01))
    trace.append(Misread("truncated", "half a secret"))
    trace.append(Answered("the secret answer", "x"))
    trace.append(Stopped("answer", "", 2, 0.3))
    return trace


def _routed(start: int, count: int) -> Routed:
    experts = (np.arange(count * 8).reshape(count, 2, 4) + start) % 16
    margin = np.full((count, 2), 0.125, np.float16)
    return Routed(start, experts.astype(np.uint16), np.full((count, 2, 4), 60, np.uint8), margin)


def _captured(start: int, count: int) -> Captured:
    latent = (np.arange(count * 6).reshape(count, 2, 3) + 0x3F80).astype(np.uint16)
    query = np.arange(count * 12, dtype=np.float32).reshape(count, 2, 2, 3)
    return Captured(start, (0, 3), {"latent": (0, 2), "query_latent": (0, 2)},
                    {"latent": latent, "query_latent": query})  # fmt: skip


def _moved(start: int) -> ExpertsMoved:
    loads = np.array([[0, 1, 5, -1], [1, 0, 7, 3]], np.int32)
    return ExpertsMoved(start, 1, 4, np.array([2, 3]), np.array([2, 1]), np.array([0.5, 0.25]),
                        loads, {"disk→host": 123})  # fmt: skip


def same(one: Trace, other: Trace) -> None:
    assert one.about == other.about
    for name in ("ids", "kinds", "entropy", "logprob", "seconds", "experts", "weights", "margin"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    assert one.texts[: len(one)] == other.texts[: len(other)]
    assert one.top == other.top
    assert (one.calls, one.misread, one.stopped) == (other.calls, other.misread, other.stopped)
    assert (one.answer, one.prefill_seconds) == (other.answer, other.prefill_seconds)
    assert (one.dropped, one.redacted) == (other.dropped, other.redacted)
    assert (one.captured.names, one.captured.heads) == (other.captured.names, other.captured.heads)
    assert (one.captured.first, one.captured.stop) == (other.captured.first, other.captured.stop)
    for name in one.captured.names:
        assert one.captured.layers(name) == other.captured.layers(name)
        assert np.array_equal(one.captured.raw(name), other.captured.raw(name))
    assert len(one.moved) == len(other.moved)
    for a, b in zip(one.moved, other.moved, strict=True):
        assert (a.start, a.tokens, a.slots, a.bytes_moved) == (
            b.start,
            b.tokens,
            b.slots,
            b.bytes_moved,
        )
        for name in ("hits", "misses", "stall", "loads"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    trace = example()
    path = trace.save(tmp_path / "x.k2trace")
    same(trace, k2lab.open(path))
    same(trace, k2lab.open(str(path)))
    assert list(tmp_path.iterdir()) == [path]


def test_what_made_a_trace_comes_back(tmp_path: Path) -> None:
    trace = example()
    trace.facts = Facts("k2lab on cpu", "bfloat16", "full", latent_bytes=70_272)
    trace.capture_seconds = 0.25
    found = open_trace(trace.save(tmp_path / "x.k2trace"))
    assert found.facts == trace.facts and found.capture_seconds == 0.25
    assert found.fork(1).facts == trace.facts


def test_an_empty_trace_and_one_without_experts_come_back(tmp_path: Path) -> None:
    same(Trace(ABOUT), k2lab.open(Trace(ABOUT).save(tmp_path / "empty.k2trace")))
    dense = About("dense", layers=2, dense_layers=2, experts=0, slots=0, scaling=1.0, vocab=9)
    trace = Trace.collect([PromptRead(0, (1,), ("a",), ("user",), 0.0)], dense)
    same(trace, k2lab.open(trace.save(tmp_path / "dense.k2trace")))


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(), max_size=8))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    ids = tuple(range(len(texts)))
    events = [PromptRead(0, ids, tuple(texts), ("user",) * len(ids), 0.0)] if texts else []
    path = tmp_path_factory.mktemp("any") / "x.k2trace"
    opened = k2lab.open(Trace.collect(events, ABOUT).save(path))
    assert opened.texts == texts


def test_an_opened_trace_is_mapped_and_can_grow(tmp_path: Path) -> None:
    path = example().save(tmp_path / "x.k2trace")
    before = path.read_bytes()
    trace = k2lab.open(path)
    assert isinstance(trace.experts.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        trace.experts[0] = 1
    trace.append(TokenChosen(4, 1, "y", "answer", 0.0, 0.0, (), 0.3))
    trace.append(_routed(3, 2))
    trace.append(_captured(3, 1))
    assert (len(trace), trace.routed, trace.captured.stop) == (5, 5, 4)
    assert trace.text().endswith("y")
    assert path.read_bytes() == before


def test_a_trace_that_was_opened_can_replace_its_own_file(tmp_path: Path) -> None:
    path = example().save(tmp_path / "x.k2trace")
    same(example(), k2lab.open(k2lab.open(path).save(path)))


def test_redaction_leaves_no_text_and_no_ids(tmp_path: Path) -> None:
    path = example().save(tmp_path / "x.k2trace", redact=True)
    trace = k2lab.open(path)
    assert trace.redacted
    assert trace.text() == HIDDEN * 4 and not trace.ids.any()
    assert set(trace.top) == {()}
    assert not trace.captured
    call = trace.calls[0]
    assert (call.name, call.arguments, call.content, call.ok) == ("calc", "", "", True)
    assert (trace.answer, trace.misread[0].text) == ("", "")
    assert np.array_equal(trace.experts, example().experts)
    assert np.array_equal(trace.entropy, example().entropy, equal_nan=True)
    for word in ("secret", "script", "Ä", "<|u|>"):
        assert word.encode() not in path.read_bytes()
    again = k2lab.open(trace.save(tmp_path / "y.k2trace"))
    assert again.redacted


def test_a_token_of_kimi_k2_takes_less_than_2_kb(tmp_path: Path) -> None:
    trace = synthetic(500)
    assert trace.about.moe_layers * trace.about.slots == 480
    assert trace.save(tmp_path / "x.k2trace").stat().st_size / 500 < 2000


def test_opening_and_showing_need_no_torch(tmp_path: Path) -> None:
    path = example().save(tmp_path / "x.k2trace")
    code = f"""
import sys, k2lab
from k2lab.trace import routing
trace = k2lab.open({str(path)!r})
routing.load(trace)
trace.to_html({str(tmp_path / "x.html")!r})
from k2lab.widgets.thoughts import ThoughtStream
ThoughtStream(trace).freeze()
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.html").stat().st_size > 10_000


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_files_of_every_version_open(version: int, request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"version-{version}.k2trace"
    if version == VERSION and request.config.getoption("--write-golden"):
        example().save(path)
    same(example(), k2lab.open(path))


# ------------------------------------------------------------------- files that are not what they say


def parts(path: Path) -> tuple[dict, dict, bytes]:
    """Header, the trace's metadata, data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"][KEY]), content[8 + length :]


def write(path: Path, header: dict, metadata: object, data: bytes) -> Path:
    text = json.dumps({**header, "__metadata__": {KEY: json.dumps(metadata)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return example().save(tmp_path / "x.k2trace")


def test_what_cannot_be_written_is_named_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    trace = example()
    for path in (folder, tmp_path / "nowhere" / "x", Path(), tmp_path / "a\0b"):
        for write in (trace.save, trace.to_html):
            with pytest.raises(TraceError, match=f"{path} cannot be written: "):
                write(path)
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_file_that_others_write_at_the_same_time_is_whole(tmp_path: Path) -> None:
    path, data = tmp_path / "x", bytes(1_000_000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_whole(path, data), range(40)))
    assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="There is no file"):
        open_trace(tmp_path / "none.k2trace")


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04" + b"x" * 99, b"# a text\n" * 40])
def test_foreign_files_say_that_they_are_no_traces(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.k2trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="is not a trace"):
        open_trace(path)


def test_other_safetensors_files_and_folders_are_foreign(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="without a trace's metadata"):
        open_trace(GOLDEN / "int4.safetensors")
    with pytest.raises(TraceError, match="is not a trace"):
        open_trace(tmp_path)


def test_newer_files_name_the_mend(saved: Path) -> None:
    header, metadata, data = parts(saved)
    write(saved, header, metadata | {"version": VERSION + 1}, data)
    with pytest.raises(TraceError, match=r"newer k2lab.*pip install --upgrade"):
        open_trace(saved)


@pytest.mark.parametrize("cut", [1, 100, 2000])
def test_cut_files_are_damaged(saved: Path, cut: int) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:-cut])
    with pytest.raises(TraceError, match="damaged"):
        open_trace(saved)
    saved.write_bytes(content + b"x")
    with pytest.raises(TraceError, match="damaged"):
        open_trace(saved)


WRONG = {
    "no version": lambda m: m.pop("version"),
    "version of another type": lambda m: m.update(version="1"),
    "no model": lambda m: m.pop("about"),
    "more experts chosen than there are": lambda m: m["about"].update(experts=3),
    "other layers": lambda m: m["about"].update(layers=4),
    "layers of another type": lambda m: m["about"].update(layers="3"),
    "negative sizes": lambda m: m["about"].update(dense_layers=-1, layers=1),
    "a call without a name": lambda m: m["calls"][0].pop("name"),
    "a call whose name is a number": lambda m: m["calls"][0].update(name=5),
    "an unknown end": lambda m: m["stopped"].update(reason="bored"),
    "kinds that are not named": lambda m: m["kinds"].clear(),
    "kinds with unknown names": lambda m: m["kinds"].__setitem__(3, "dreaming"),
    "calls that are no list": lambda m: m.update(calls=7),
    "heads that are not there": lambda m: m["captured"].update(heads=[0]),
    "captured values that are not there": lambda m: m["captured"]["layers"].update(scores=[1]),
    "captured values with foreign names": lambda m: m["captured"]["layers"].update({"../x": [1]}),
    "moves that are not there": lambda m: m["moved"].append({}),
    "bytes that are no number": lambda m: m["moved"][0].update({"disk→host": "123"}),
    "more layers than a memory holds": lambda m: m["about"].update(layers=10**9),
    "a layer without experts": lambda m: m["about"].update(experts=0),
    "seconds beyond every number": lambda m: m.update(prefill_seconds=10**400),
    "seconds that are no number": lambda m: m["stopped"].update(seconds=float("nan")),
    "a size beyond every number": lambda m: m["about"].update(vocab=10**400),
    "a call after the last token": lambda m: m["calls"][0].update(index=4),
    "captured values after the last token": lambda m: m["captured"].update(first=3),
    "redaction that is neither true nor false": lambda m: m.update(redacted="false"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_altered_metadata_is_damaged(saved: Path, change) -> None:
    header, metadata, data = parts(saved)
    change(metadata)
    write(saved, header, metadata, data)
    with pytest.raises(TraceError, match="damaged"):
        open_trace(saved)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_altered_byte_opens_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    path = example().save(tmp_path_factory.mktemp("byte") / "x.k2trace")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = byte
    path.write_bytes(content)
    with suppress(TraceError):
        repr(open_trace(path))


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [0, 10**30]},
        {"shape": [0] * 70},
        {"shape": [0, -1]},
        {"shape": [False]},
        {"data_offsets": [0.0, 0.0]},
        {"data_offsets": [0]},
        {"dtype": ["U8"]},
    ],
)
def test_an_array_that_cannot_be_is_damaged(saved: Path, entry: dict) -> None:
    header, metadata, data = parts(saved)
    header["more"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} | entry
    write(saved, header, metadata, data)
    with pytest.raises(TraceError, match="damaged: its header is wrong about 'more'"):
        open_trace(saved)


def test_layers_that_no_memory_holds_are_damaged(tmp_path: Path) -> None:
    path = Trace(ABOUT).save(tmp_path / "x.k2trace")
    header, metadata, data = parts(path)
    many = metadata["about"]["layers"] = 10**9
    for name in ("experts", "weights", "margin"):  # of no token
        header[name]["shape"][1] = many - ABOUT.dense_layers
    write(path, header, metadata, data)
    with pytest.raises(TraceError, match="impossible sizes"):
        open_trace(path)


def test_routes_of_no_token_and_texts_that_run_back_are_damaged(saved: Path) -> None:
    trace = example()
    arrays, header = read(saved)
    most = np.iinfo(np.int64)
    # Differences between these ends overflow to positive ones.
    for name, values in (
        ("text_end", np.array([most.max, most.min, -1, len(arrays["text"])])),
        ("experts", np.concatenate([trace.experts] * 2)),
    ):
        more = {each: np.ascontiguousarray(a) for each, a in arrays.items()} | {name: values}
        if name == "experts":
            more |= {each: np.concatenate([more[each]] * 2) for each in ("weights", "margin")}
        saved.unlink()  # what was read is mapped
        saved.write_bytes(packed(more, metadata=header))
        with pytest.raises(TraceError, match="damaged"):
            open_trace(saved)


@pytest.mark.parametrize(
    ("layer", "experts"), [(0, 16), (3, 16), (-1, 16), (2**63, 16), (1, 15), (1, 16)]
)
def test_captured_scores_are_of_layers_and_experts_that_the_model_has(
    tmp_path: Path, layer: int, experts: int
) -> None:
    trace = Trace(ABOUT)
    trace.append(TokenChosen(0, 1, "x", "answer", -0.1, 0.2, (), 0.1))
    scores = np.zeros((1, 1, experts), np.float32)
    trace.append(Captured(0, (), {"scores": (layer,)}, {"scores": scores}))
    path = trace.save(tmp_path / "x.k2trace")
    if (layer, experts) == (1, 16):
        assert open_trace(path).captured.layers("scores") == (1,)
        return
    with pytest.raises(TraceError, match=r"damaged: .*'captured\.scores'"):
        open_trace(path)


def test_half_a_character_comes_back_as_the_model_reads_it(tmp_path: Path) -> None:
    trace = example()
    trace.texts[0] = "\ud83d"
    trace.append(ToolAnswered("0.0", "calc", "caf\udce9", ok=True, seconds=0.01))
    back = open_trace(trace.save(tmp_path / "x.k2trace"))
    assert (back.texts[0], back.calls[0].content) == ("\ufffd", "caf\ufffd")


HOSTILE = (
    None, True, 0, -1, 2**31, 2**63, 10**30, 10**400, 1.5, -0.5, float("nan"), float("inf"),
    "", "x", "\ud800", "9" * 5000, "x" * 100_000, [], [0], [[]], [0] * 70, [10**30, 0], [0.0, 0.0],
    [None, None], {}, {"x": 1}, {"": None},
)  # fmt: skip


def places(values: object, way: tuple = ()) -> Iterator[tuple]:
    """The ways to everything in a JSON value."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)  # type: ignore[arg-type]
    for key, value in inner:
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))


def replaced(draw: Random, whole: dict, way: tuple) -> dict:
    """The values with what lies at the end of the way replaced, taken out, doubled or exchanged."""
    whole = copy.deepcopy(whole)
    inner: Any = whole
    for key in way[:-1]:
        inner = inner[key]
    last, kind = way[-1], draw.randrange(8)
    if kind == 0:
        del inner[last]
    elif kind == 1:
        inner[last] = copy.deepcopy(
            draw.choice([*inner.values()] if type(inner) is dict else inner)
        )
    elif kind == 2 and isinstance(inner, list):
        inner.append(inner[last])
    elif kind == 2:
        inner[f"{last}."] = inner[last]
    else:
        inner[last] = draw.choice(HOSTILE)
    return whole


def mutants(draw: Random, header: dict, metadata: dict, data: bytes) -> Iterator[tuple]:
    """The parts of files with something wrong in the metadata, in the header, or in the data."""
    del header["__metadata__"]
    for way in [*places(metadata)] * 4:
        yield header, replaced(draw, metadata, way), data
    for way in places(header):
        yield replaced(draw, header, way), metadata, data
    for bad in HOSTILE:
        for entry in ({"shape": bad}, {"data_offsets": bad}, {"data_offsets": [bad] * 2}):
            empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], **entry}
            yield {**header, "more": empty}, metadata, data
    for _ in range(100):
        place, altered = draw.randrange(len(data)), bytearray(data)
        altered[place] = draw.randrange(256)
        yield header, metadata, bytes(altered)
        yield header, metadata, draw.choice((data[:place], data + data[place:]))


def test_any_altered_part_opens_and_can_be_used_or_is_named(tmp_path: Path) -> None:
    """Whatever stands in a file: where it opens, its trace is told, counted, read and saved."""
    opened = 0
    for parts_ in mutants(Random(0), *parts(GOLDEN / f"version-{VERSION}.k2trace")):
        path = write(tmp_path / "x.k2trace", *parts_)
        with suppress(TraceError):
            trace = open_trace(path)
            opened += 1
            assert repr(trace) and figures(trace) and isinstance(trace.text(), str)
            assert sum(span.stop - span.start for span in trace.spans()) == len(trace)
            assert len(open_trace(trace.save(path))) == len(trace)
        path.unlink(missing_ok=True)  # what was read is mapped
    assert opened > 100
