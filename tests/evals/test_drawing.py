"""The bench of the widgets, on a trace that is small enough for a test."""

import json
import shutil
import subprocess
import sys
import urllib.request

import pytest

from k2lab.evals.drawing import _served
from k2lab.trace.synthetic import synthetic


def test_frames_travel_as_they_are_packed():
    trace = synthetic(40)
    with _served(trace) as (address, sent):
        page = json.loads(urllib.request.urlopen(f"{address}page").read())
        data = urllib.request.urlopen(f"{address}frame/0").read()
    size = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + size])
    assert page["frames"] == 1 and len(head["header"]["texts"]) == 40
    assert 4 + size + sum(head["lengths"]) == len(data) == sent[1]


@pytest.mark.timeout(240)
def test_a_small_run_is_opened_and_moved_in_a_browser():
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("Chromium is not installed")
    # In a process of its own: one process has one playwright, and the browser tests have theirs.
    command = ["bench", "widgets", "--tokens", "600", "--repeats", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "k2lab", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name] for name in ("tokens", "layers", "experts", "slots")] == [600, 60, 384, 8]
    assert found["open_seconds"] > 0 and found["megabytes"] > 0.9
    for movement in (found[name] for name in ("idle", "pan", "brush", "hover")):
        assert movement["frames_per_second"] > 0 and movement["slow_ms"] > 0
