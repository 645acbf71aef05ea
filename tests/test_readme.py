"""What README promises: its example runs, its commands exist, its table names real files."""

import re
from pathlib import Path

import pytest

from k2lab import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    if not list((ROOT / "assets" / "k2-nano").glob("model*.safetensors")):
        pytest.skip("K2-nano's weights are not in this checkout")
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_commands_exist() -> None:
    parser = cli.command_line()
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    named = [line.split("#")[0].split()[1:] for line in lines if line.startswith("k2lab ")]
    assert len(named) >= 7
    for arguments in named:
        quoted = re.sub(r'"[^"]*"', "QUESTION", " ".join(arguments)).split()
        parser.parse_args(quoted)


def test_first_commands_are_those_of_the_checks() -> None:
    assert 'pip install -e ".[test]" && pytest' in TEXT
    steps = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -q -e ".[test]"' in steps
    assert re.search(r"^pytest\b", steps, flags=re.MULTILINE)


def test_files_of_the_table_exist() -> None:
    table = TEXT.split("## Where is")[1].split("## ")[0]
    paths = re.findall(r"`(k2lab/[\w/.]+|notebooks/)`", table)
    named = [path for path in paths if "X" not in path]
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]


def test_exact_figures_are_those_of_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "k2-thinking"]) == 0
    printed = capsys.readouterr().out
    table = TEXT.split("## Figures")[1].split("Measured")[0]
    column = re.findall(r"^\| [a-z].*?\| ([\d,]+) \|", table, flags=re.MULTILINE)
    assert len(column) == 5
    assert all(f" {figure}\n" in printed for figure in column)
