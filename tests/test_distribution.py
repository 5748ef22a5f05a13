"""The check of wheel and source archive finds what it is to find."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from distribution import ROOT, of_the_archive, of_the_wheel

FILES = {"README.md", ".github/workflows/tests.yml", "reweight/__init__.py", "tests/test_it.py"}
NEEDED = "Requires-Dist: numpy>=1\nRequires-Dist: torch>=2\nRequires-Dist: tqdm; extra == 'cdr'\n"


def wheel(names: set[str], needed: str = NEEDED) -> zipfile.ZipFile:
    opened = zipfile.ZipFile(io.BytesIO(), "w")
    for name in names:
        opened.writestr(name, "")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened.writestr("it-1.dist-info/METADATA", f"Metadata-Version: 2.4\n{needed}\n{readme}")
    return opened


def archive(tmp_path: Path, names: set[str]) -> tarfile.TarFile:
    with tarfile.open(tmp_path / "it.tar.gz", "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(f"it-1/{name}"))
    return tarfile.open(tmp_path / "it.tar.gz")


def test_a_wheel_of_the_library_alone_is_right() -> None:
    assert not [*of_the_wheel(wheel({"reweight/__init__.py"}), FILES)]


@pytest.mark.parametrize(
    ("names", "needed", "named"),
    [
        ({"reweight/__init__.py", "tests/test_it.py"}, NEEDED, "tests/test_it.py does not belong"),
        (set(), NEEDED, "reweight/__init__.py is missing"),
        ({"reweight/__init__.py"}, NEEDED + "Requires-Dist: scipy>=1\n", "scipy"),
    ],
)
def test_a_wrong_wheel_is_named(names: set[str], needed: str, named: str) -> None:
    (found,) = of_the_wheel(wheel(names, needed), FILES)
    assert named in found


def test_a_source_archive_holds_the_repository_but_for_its_workflows(tmp_path: Path) -> None:
    names = {"README.md", "reweight/__init__.py", "tests/test_it.py", "PKG-INFO"}
    assert not [*of_the_archive(archive(tmp_path, names), FILES)]
    found = [*of_the_archive(archive(tmp_path, names - {"README.md"} | {"cache.bin"}), FILES)]
    assert "cache.bin does not belong" in found[0] and "README.md is missing" in found[1]
