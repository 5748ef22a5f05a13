"""What must agree across the project's files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import reweight

ROOT = Path(__file__).parent.parent
INTEGRATIONS = ROOT / "reweight" / "integrations"


# What an extra brings, and the files that import it when they need it.
OPTIONAL = {
    "_plot.py": {"matplotlib"},
    "recorder.py": {"matplotlib"},
    "_removal_plot.py": {"matplotlib"},
    "removal.py": {"matplotlib"},
    "files.py": {"pyarrow"},
}


def when_loaded(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run on import: not inside functions, nor for type checkers only."""
    for child in ast.iter_child_nodes(node):
        types_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not types_only and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from when_loaded(child)


def imported_packages(path: Path, *, lazily: bool = True) -> set[str]:
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazily else when_loaded(tree):
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
    assert foreign == OPTIONAL
    assert all(imported_packages(path, lazily=False) <= allowed for path in core)


def test_the_core_does_not_import_integrations() -> None:
    for path in ROOT.glob("reweight/**/*.py"):
        if INTEGRATIONS not in path.parents:
            assert "integrations" not in path.read_text(encoding="utf-8"), path


def documented(module: ModuleType) -> list[str]:
    """The names that the reference describes after it turned to ``module``."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    parts = re.split(r"^\.\. currentmodule:: ([\w.]+)$", page, flags=re.MULTILINE)[1:]
    texts = [
        text for name, text in zip(parts[::2], parts[1::2], strict=True) if name == module.__name__
    ]
    return re.findall(r"^\.\. auto\w+:: (\w+)$", "".join(texts), flags=re.MULTILINE)


@pytest.mark.parametrize(
    "module",
    [reweight, reweight.checkpoint, reweight.diagnostics, reweight.valuation],
    ids=lambda m: m.__name__,
)
def test_every_public_name_exists_and_has_a_place_in_the_reference(module: ModuleType) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
    names = [n for n in module.__all__ if not isinstance(getattr(module, n), ModuleType)]
    assert sorted(documented(module)) == sorted(names)


def test_every_benchmark_has_a_command_in_their_page() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for script in (ROOT / "benchmarks").glob("[!_]*.py"):
        assert f"python benchmarks/{script.name}" in page, script.name


def test_the_citation_and_the_changelog_name_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {reweight.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(reweight.__version__)}\b", changelog, re.MULTILINE)


def test_no_command_installs_the_package_from_an_index_that_does_not_have_it() -> None:
    # A release that is published changes this test. Until then pip finds no distribution of the
    # name; `pip install .` in a checkout works, and `name @ git+...`.
    listed = subprocess.check_output(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, text=True)
    command = re.compile(r"pip install[^\n`]*torch-reweight(?!\S*\s*@)")
    pages = [ROOT / name for name in listed.splitlines() if not name.startswith("tests/")]
    assert pages
    wrong = [page for page in pages if command.search(page.read_text(encoding="utf-8"))]
    assert not wrong


def test_the_readme_names_the_oldest_versions_that_the_package_asks_for() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (dependencies,) = re.findall(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, oldest in re.findall(r'"(\w+)>=([\d.]+)"', dependencies):
        assert f"{name} ≥ {oldest}" in readme
