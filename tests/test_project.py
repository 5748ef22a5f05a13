"""What must agree across the project's files."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import reweight

ROOT = Path(__file__).parent.parent
INTEGRATIONS = ROOT / "reweight" / "integrations"


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_the_core_imports_torch_and_numpy_and_nothing_else() -> None:
    core = [path for path in ROOT.glob("reweight/**/*.py") if INTEGRATIONS not in path.parents]
    assert core
    allowed = {"torch", "numpy", "reweight", *sys.stdlib_module_names}
    foreign = {path.name: extra for path in core if (extra := imported_packages(path) - allowed)}
    assert foreign == {}


def test_the_core_does_not_import_integrations() -> None:
    for path in ROOT.glob("reweight/**/*.py"):
        if INTEGRATIONS not in path.parents:
            assert "integrations" not in path.read_text(encoding="utf-8"), path


def test_every_public_name_exists_and_has_a_place_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(reweight.__all__)
    assert all(hasattr(reweight, name) for name in reweight.__all__)


def test_the_citation_and_the_changelog_name_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {reweight.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(reweight.__version__)}\b", changelog, re.MULTILINE)
