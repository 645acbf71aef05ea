"""The report on the agent under load, in small."""

from dataclasses import replace

from k2lab.evals.agent import agent


def test_the_report_is_whole_and_tells_when_it_is_not() -> None:
    found = agent(seeds=1, steps=30, mutants_tried=500, every=60)
    assert found.whole
    assert (found.storms.seeds, found.kills.points, found.mutants.tried) == (1, 3, 500)
    assert found.storms.kept_once == found.storms.calls >= 30
    assert found.peak_bytes > 10**7
    assert not replace(found, storms=replace(found.storms, kept_once=1)).whole
    assert not replace(found, kills=replace(found.kills, once=2)).whole
    assert not replace(found, mutants=replace(found.mutants, retracted=1)).whole
