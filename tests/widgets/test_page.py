"""The page of a trace: one file, with the trace's captured values as far as they fit."""

from pathlib import Path

import numpy as np

from k2lab.engine.events import Captured, Routed, TokenChosen, ToolAnswered, ToolAsked
from k2lab.trace.captured import ATTENTION
from k2lab.trace.synthetic import synthetic
from k2lab.trace.trace import About, Trace
from k2lab.widgets.details import CapturedDetails
from k2lab.widgets.page import DETAIL_BYTES, captured, write

ABOUT = About("small", layers=3, dense_layers=1, experts=16, slots=4, scaling=2.5, vocab=100)


def scored(tokens: int) -> Trace:
    """A trace with router scores of its first MoE layer."""
    trace = Trace(ABOUT)
    for index in range(tokens):
        trace.append(TokenChosen(index, 1, "x", "answer", -0.1, 0.2, (), 0.1))
        rows = np.zeros((1, 2, 4), np.uint16)
        trace.append(Routed(index, rows, rows.astype(np.uint8), np.ones((1, 2), np.float16)))
        values = np.full((1, 1, 16), index, np.float32)
        layers = {"scores": (1,), "choice": (1,)}
        trace.append(Captured(index, (), layers, {"scores": values, "choice": values + 1}))
    return trace


def test_the_newest_captured_values_go_with_the_page_until_there_is_no_room():
    one = 2 * 2 * 16 * 4  # bytes of a token: two arrays of two layers
    found = captured(scored(9), room=3 * one)
    assert list(found) == ["route:8:-1", "route:7:-1", "route:6:-1"]
    assert found["route:7:-1"].arrays["scores"][0, 0] == 7
    assert np.isnan(found["route:7:-1"].arrays["scores"][1, 0])
    assert len(captured(scored(9))) == 9 and DETAIL_BYTES > 1e6
    assert captured(synthetic(9)) == {}


def test_half_a_character_in_a_result_is_in_the_page_as_the_model_reads_it(tmp_path: Path):
    trace = scored(1)
    trace.append(ToolAsked("k", "functions.files:0", "files", "{}", 0))
    trace.append(ToolAnswered("k", "files", "caf\udce9.txt", ok=True, seconds=0.1))
    assert "caf\ufffd.txt" in trace.to_html(tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_page_of_a_run_whose_first_latents_were_given_up_does_without_attention(tmp_path: Path):
    trace = scored(0)
    for index in range(3):
        trace.append(TokenChosen(index, 1, "x", "answer", -0.1, 0.2, (), 0.1))
        values = {name: np.ones((1, 1, 4), np.float32) for name in ATTENTION}
        values |= {name: values[name][:, :, None] for name in ATTENTION if "query" in name}
        trace.append(Captured(index, (0,), dict.fromkeys(ATTENTION, (1,)), values))
    assert next(iter(captured(trace))) == "attention:2:1"
    trace.captured.forget(1)
    assert captured(trace) == {} and trace.to_html(tmp_path / "x.html").exists()
    assert "given up" in CapturedDetails().attention(trace, 2, 1).note


def test_two_thousand_tokens_of_kimi_k2_take_less_than_8_mb(tmp_path: Path):
    file = write(synthetic(2000), tmp_path / "x.html")
    assert 3_000_000 < file.stat().st_size < 8_000_000
    text = file.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text
