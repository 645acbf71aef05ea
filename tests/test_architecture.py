"""The shape of the project: layers, sizes, names, dependencies, and what a notebook may hold.

Not here: what ruff finds, such as docstrings and the order of `__all__` (test_checks.py).
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "k2lab"
FRONT = ROOT / "widgets"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*FRONT.glob("*.js"), *FRONT.glob("*.mjs")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

LAYERS = {
    "spec": 0,
    "tensors": 1,
    "text": 1,
    "weights": 2,
    "model": 3,
    "engine": 4,
    "trace": 5,
    "agent": 5,
    "world": 5,
    "train": 6,
    "evals": 6,
    "widgets": 6,
    "branch": 7,
    "recipe": 7,
    "rules": 7,
    "watched": 7,
    "live": 8,
    "run": 8,
    "lab": 8,
    "classroom": 8,
    "console": 8,
    "lessons": 9,  # uses the lab as a notebook does
    "__init__": 9,
    "commands": 10,
    "cli": 11,
    "__main__": 12,
}
ANYWHERE = {"errors", "paths"}
SIDEWAYS = {
    ("world", "agent"),  # the world's tools are the agent's tools
    ("lab", "run"),  # a lab starts runs,
    ("run", "lab"),  # and a run knows its lab
    ("recipe", "rules"),  # a recipe holds the rules of its run,
    ("rules", "recipe"),  # which begin a journal by it
    ("rules", "lab"),
    ("run", "live"),  # a run shows itself through its store,
    ("live", "run"),  # which asks the run in turn
    ("trace", "widgets"),  # a trace's page holds the widgets
    ("evals", "widgets"),  # the widgets are measured too
    ("train", "evals"),  # a trained model's card states what was measured
}
NO_TORCH = {"spec", "text", "trace", "widgets", "errors", "paths", "world", "agent/tools"}

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "k2lab", "notebooks", "widgets", "assets"}
TOP_LEVEL |= {"tests"}
LIMIT = 400  # lines of a source file
NOTEBOOK_LIMIT = 500_000  # bytes

PROGRAMS = {"jupyterlab"}  # declared because it is started, not imported
EXTRAS = {"mcp", "otel", "gpu"}  # adapters, imported where they are used
SHARED = {"opentelemetry": "opentelemetry-api"}  # a name that several distributions fill
PEERS = {"transformers", "tokenizers", "playwright"}  # of benchmarks alone; in the test extra
PEERS |= {"airllm"}  # and one that a person installs for the comparison


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    """Sub-package of a module, or the module's own name at the top."""
    inner = path.relative_to(PACKAGE)
    return inner.parts[0] if len(inner.parts) > 1 else inner.stem


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} has a relative import"
            assert node.module is not None
            if node.module == "k2lab":
                for alias in node.names:  # a module, or a name of the package itself
                    module = (PACKAGE / alias.name).is_dir() or alias.name in LAYERS
                    module = module or alias.name in ANYWHERE
                    yield f"k2lab.{alias.name if module else '__init__'}"
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers_point_downward(path: Path) -> None:
    own = part_of(path)
    if own in ANYWHERE:
        return
    assert own in LAYERS, f"{own} has no place among the layers"
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "k2lab" or not rest:
            continue
        other = rest[0]
        allowed = (
            other == own
            or other in ANYWHERE
            or (own, other) in SIDEWAYS
            or LAYERS.get(other, 99) < LAYERS[own]
        )
        assert allowed, f"{own} (layer {LAYERS[own]}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_light_parts_never_import_torch(path: Path) -> None:
    inner = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if part_of(path) in NO_TORCH or inner in NO_TORCH:
        assert "torch" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LIMIT


def test_each_widget_has_its_four_files() -> None:
    stems = {path.stem for path in FRONT.glob("[!_]*.js")}
    python = {path.stem for path in (PACKAGE / "widgets").glob("*.py")}
    # What begins with an underscore is shared: the kit and its like, and the fakes of the tests.
    tests = {path.name.removesuffix(".test.mjs") for path in FRONT.glob("[!_]*.test.mjs")}
    assert stems <= python, f"without a Python half: {sorted(stems - python)}"
    assert stems == tests, f"without a test, or a test without a widget: {sorted(stems ^ tests)}"
    # The Python half may have joiners of its own (base, wire); a style sheet needs a script.
    styles = {path.stem for path in FRONT.glob("*.css")} - {"_kit"}
    assert styles <= stems


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_text_of_models_never_becomes_markup(path: Path) -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(")
    code = re.sub(r"/\*.*?\*/|^\s*//.*?$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    if not path.name.endswith(".test.mjs"):
        assert not forbidden.search(code)
        assert not re.search(r"https?://(?!www\.w3\.org/)", code), "the front end is offline"


def test_declared_dependencies_are_the_imported_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    declared = {re.split(r"[<>=\[ ;]", line)[0] for line in lines}
    distributions = packages_distributions()
    used: dict[str, Path] = {}
    for path in MODULES:
        for name in imports(path):
            top = name.split(".")[0]
            if top != "k2lab" and top not in sys.stdlib_module_names:
                used[SHARED.get(top, distributions.get(top, [top])[0].lower())] = path
    undeclared = used.keys() - declared - PEERS
    assert not undeclared, f"imported, not declared: {undeclared}"
    unused = declared - used.keys() - PROGRAMS
    assert not unused, f"declared, not imported: {unused}"
    measuring = ("evals", "bench.py")  # a peer is met where both are measured side by side
    for peer in PEERS & used.keys():
        assert set(measuring) & set(used[peer].parts), f"{peer} in {used[peer]}"


def test_top_level_is_fixed() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout, so there is no list of files")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in tops if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebooks_are_light_and_clean(path: Path) -> None:
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)
    assert path.stat().st_size <= NOTEBOOK_LIMIT
    notebook = json.loads(path.read_text())
    assert "widgets" not in notebook["metadata"], "widget state is not committed"
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", f"{path.name} was committed with an error"


@pytest.mark.parametrize(
    "module", ["k2lab", "k2lab.spec.costs", "k2lab.text.parse", "k2lab.trace.trace", "widgets"]
)
def test_light_imports_stay_light(module: str) -> None:
    names = [module]
    if module == "widgets":
        names = [f"k2lab.widgets.{path.stem}" for path in (PACKAGE / "widgets").glob("[a-z]*.py")]
    code = f"import {', '.join(names)}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
