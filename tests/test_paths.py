"""The two places where front ends and assets may lie."""

from pathlib import Path

import pytest

from k2lab import paths
from k2lab.errors import MissingError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "k2lab"
    folder.mkdir()
    monkeypatch.setattr(paths, "PACKAGE", folder)
    return folder


def test_wheel_goes_before_checkout(package: Path) -> None:
    for folder in (package / "_front", package.parent / "widgets"):
        folder.mkdir()
        (folder / "_kit.js").touch()
    assert paths.front() == package / "_front"


def test_checkout_is_known_by_its_marker(package: Path) -> None:
    (package.parent / "assets").mkdir()
    with pytest.raises(MissingError, match=r"_kit\.js"):
        paths.assets()
    (package.parent / "widgets").mkdir()
    (package.parent / "widgets" / "_kit.js").touch()
    assert paths.assets() == package.parent / "assets"


def test_neither_names_both_places_and_the_mend(package: Path) -> None:
    with pytest.raises(MissingError) as caught:
        paths.notebooks()
    assert str(package / "_notebooks") in caught.value.found
    assert str(package.parent / "notebooks") in caught.value.found
    assert "reinstall" in caught.value.mend


def test_missing_asset_says_what_is_there(package: Path) -> None:
    (package / "_assets" / "k2-nano").mkdir(parents=True)
    assert paths.asset("k2-nano").is_dir()
    with pytest.raises(MissingError, match="there: k2-nano"):
        paths.asset("k3")
