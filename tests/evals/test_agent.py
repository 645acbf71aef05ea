"""The report on the agent under load, in small."""

from dataclasses import replace

from k2lab.evals.agent import agent


def test_the_report_is_whole_and_tells_when_it_is_not() -> None:
    found = agent(seeds=1, steps=30, mutants_tried=500, every=60)
    assert found.whole
    assert (found.storms.seeds, found.mutants.tried) == (1, 500)
    assert [(scene, each.points) for scene, each in found.kills.items()] == [
        ("roomy", 3),
        ("narrow", 4),
    ]
    assert found.storms.kept_once == found.storms.calls >= 30
    assert found.peak_bytes > 10**7
    assert not replace(found, storms=replace(found.storms, kept_once=1)).whole
    for wrong in ({"once": 3}, {"same": 3}, {"compacted": 4}):
        narrow = replace(found.kills["narrow"], **wrong)
        assert not replace(found, kills={**found.kills, "narrow": narrow}).whole
    assert not replace(found, storms=replace(found.storms, least_struck=0.1)).whole
    assert not replace(found, mutants=replace(found.mutants, retracted=1)).whole
