"""`k2lab plan`: figures as a table or JSON, and refusals with exit code 2."""

import json

import pytest

from k2lab import cli


def test_json_names_the_binding_link(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "k2-thinking", "--gpu", "H100", "--ram", "128GB", "--disk-bw", "7GB", "--json"]
    assert cli.main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "k2-thinking"
    assert found["plan"]["placement"] == "tiered"
    assert found["plan"]["binding"] == "disk→host"
    assert found["wish"]["context"] == 4096
    assert found["machine"]["disk_rate"] == 7 * 10**9


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "k2-thinking", "--gpu", "8xH200", "--context", "32768"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["plan.placement", "sharded"] for line in lines)


def test_an_impossible_plan_exits_with_2_and_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "k2-thinking", "--gpu", "24GiB"]) == 2
    told = capsys.readouterr().err
    assert "mend:     Give the device" in told


def test_a_model_with_weights_is_planned_on_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["plan", "k2-nano", "--device-budget", "20MB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["gpus"] == 0
    assert found["plan"]["placement"] == "tiered"
    assert found["plan"]["tok_s"] > 0


def test_eight_h100_hold_kimi_k2_thinking(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "k2-thinking", "--gpu", "8xH100", "--ram", "2000GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plan"]
    assert (found["placement"], found["devices"], found["lacks"]) == ("sharded", 8, "nothing")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["k2-nano", "--disk-bw", "0"], "A disk that gives 0 bytes per second."),
        (["k2-thinking", "--gpu", "H100", "--disk-bw", "0"], "A disk that gives 0 bytes"),
        (["k2-thinking", "--gpu", "H100", "--link-bw", "0"], "A link that gives 0 bytes"),
        (["k2-nano", "--link-bw", "50GB"], "--link-bw without --gpu."),
    ],
)
def test_a_rate_that_cannot_count_is_refused(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *given]) == 2
    assert told in capsys.readouterr().err
