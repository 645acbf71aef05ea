"""Arrays to buffers and back; numbers never as JSON lists."""

import json

import numpy as np

from k2lab.engine.events import ExpertsMoved, PromptRead, Routed, TokenChosen
from k2lab.trace.trace import About, CallRecord, Trace
from k2lab.widgets import wire

ABOUT = About("nano", layers=3, dense_layers=1, experts=16, slots=4, scaling=1.0, vocab=10)


def small_trace() -> Trace:
    trace = Trace(ABOUT)
    trace.append(PromptRead(0, (1, 2), ("a", "b"), ("user", "user"), 0.1))
    top = ((5, "x", 0.5), (6, "<b>", 0.25))
    trace.append(TokenChosen(2, 5, "x", "thinking", -0.7, 1.0, top, 0.3))
    experts = np.arange(24, dtype=np.uint16).reshape(3, 2, 4) % 16
    trace.append(Routed(0, experts, np.full((3, 2, 4), 64, np.uint8), np.zeros((3, 2), np.float16)))
    return trace


def test_pack_and_unpack_are_inverse():
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.array([0.5], np.float16)}
    layout, buffers = wire.pack(arrays)
    assert layout == "a:uint16:2x3 b:float16:1" and [len(each) for each in buffers] == [14]
    assert wire.pack({}) == ("", []) and wire.unpack("", []) == {}
    back = wire.unpack(layout, buffers)
    assert all((back[name] == arrays[name]).all() for name in arrays)


def test_a_frame_has_no_json_list_of_numbers():
    header, _ = wire.frame(small_trace(), slice(0, 3), slice(0, 3))
    for value in json.loads(json.dumps(header)).values():
        assert not isinstance(value, list) or all(isinstance(item, str) for item in value)


def test_a_frame_carries_exactly_its_tokens():
    header, buffers = wire.frame(small_trace(), slice(1, 3), slice(0, 3))
    arrays = wire.unpack(header["arrays"], buffers)
    assert arrays["ids"].tolist() == [2, 5] and header["texts"] == ["b", "x"]
    assert arrays["top_count"].tolist() == [0, 2] and header["tops"] == ["x", "<b>"]
    assert arrays["experts"].shape == (3, 2, 4)


def test_a_frame_tells_what_was_brought():
    trace, ones = small_trace(), np.ones(2, int)
    for start, links in ((0, {"disk→host": 100}), (2, {"host→device": 5_000_000_000})):
        loads = np.zeros((0, 4), np.int32)
        trace.append(ExpertsMoved(start, 1, 4, ones, 2 * ones, np.full(2, 0.25), loads, links))
    header, buffers = wire.frame(trace, slice(3, 3), slice(3, 3), slice(0, 2))
    arrays = wire.unpack(header["arrays"], buffers)
    assert header["links"] == ["disk→host", "host→device"] and header["moved"] == 0
    assert arrays["move_bytes"].tolist() == [[100, 0], [0, 5e9]]
    assert arrays["move_stall"].tolist() == [0.5, 0.5]
    assert arrays["move_hits"].tolist() == [2, 2] and arrays["move_misses"].tolist() == [4, 4]


def test_routing_costs_less_than_the_budget_at_k2_size():
    about = About("K2", layers=61, dense_layers=1, experts=384, slots=8, scaling=1.0, vocab=10)
    trace = Trace(about)
    trace.append(TokenChosen(0, 1, "x", "answer", 0.0, 0.0, ((1, "x", 1.0),) * 5, 0.0))
    rows = np.zeros((1, 60, 8), np.uint16)
    trace.append(Routed(0, rows, rows.astype(np.uint8), np.zeros((1, 60), np.float16)))
    _, buffers = wire.frame(trace, slice(0, 1), slice(0, 1))
    assert sum(map(len, buffers)) < 2500


def test_very_long_results_are_cut_and_say_so():
    record = CallRecord("k", "i", "read", "{}", 3, content="x" * 30_000, ok=True, seconds=0.1)
    message = wire.call(0, record)
    assert "10,000 more characters are not shown" in message["content"]
    assert message["place"] == 0 and message["ok"] is True


def test_half_a_character_is_told_as_the_model_reads_it():
    record = CallRecord("k", "i", "files", '"\ud83d"', 3, content="caf\ud800", ok=True, seconds=0.1)
    message = wire.call(0, record)
    assert (message["arguments"], message["content"]) == ('"\ufffd"', "caf\ufffd")
