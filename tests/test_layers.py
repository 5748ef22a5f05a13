"""The library is built in layers: each part imports lower ones only, and by their faces."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The parts of the package, lowest first. A part is a module or a package right below it; it
# imports parts of lower layers only, so that the parts of one layer do not know each other.
LAYERS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"_tensors"},
            {"_sharded", "_tables", "solvers", "samplers"},
            {"losses", "verdict", "preconditioning", "weighters"},
            {"_curvature"},
            {"hypergradient"},
            {"_problem"},
            {"wrapping"},
            {"checking", "checkpoint", "diagnostics", "valuation"},
            {"__init__"},
            {"integrations"},
        ),
    )
)

# Private names of others that the package cannot do without, and why.
FOREIGN = {
    "_buffers": "nn.Module's own dict: a buffer is put back as the very same tensor",
    "_forward_pre_hooks": "nn.Module's own dict: an engine's hooks are set aside and put back",
    "_forward_hooks": "nn.Module's own dict: an engine's hooks are set aside and put back",
    "_parameters": "nn.Module's own dict: a parameter is swapped without its registration",
    "_backward_hooks": "a parameter's own hooks are set aside and put back",
    "_compiled_call_impl": "the one sign of a module that was compiled in place",
    "_indices": "of a sparse tensor that is not coalesced",
    "_values": "of a sparse tensor that is not coalesced",
    "_getframe": "sys has no public way to the caller's frame that is as cheap",
    "_exit": "of os, and documented: an end without any cleaning up",
    "_replace": "public, of a named tuple",
    "_asdict": "public, of a named tuple",
    "_fields": "public, of a named tuple",
    "_schema": "of an operator: which of its arguments it writes",
    "_version": "of a tensor: whether it was written in place",
    "_C": "torch has no public way to put a version counter back",
    "_functorch": "torch has no public way to ask whether a tensor is that of many, in a vmap",
    "_autograd": "torch has no public way to put a version counter back",
    "_unsafe_set_version_counter": "torch has no public way to put a version counter back",
    "_cdata": "of a storage: its address, which is the identity of the memory",
    "_cache": "of parametrize: weights cached before parameters moved",
    "_cache_enabled": "of parametrize: weights cached before parameters moved",
    "_get_backend": "of a process group: what knows the timeout, which has no public name",
    "_timeout": "of a process group's backend, which has no public name",
    "_sampler": "of a loader of RecBole: what draws its negatives, which has no public name",
}
SAVED = "_saved_"  # autograd nodes show by these names what they keep for the backward pass


@dataclass(frozen=True)
class Import:
    """One module that a line imports."""

    source: str
    target: str
    path: Path
    line: int


class Package:
    """The modules of a package and who imports whom, read without running anything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.trees: dict[str, ast.Module] = {}
        self.paths: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.trees[module] = ast.parse(path.read_text(encoding="utf-8"))
            self.paths[module] = path

    def part(self, module: str) -> str:
        """The part of the package that a module belongs to."""
        return (module.split(".") + ["__init__"])[1]

    def where(self, module: str, line: int) -> str:
        return f"{self.paths[module].relative_to(self.folder.parent)}:{line}"

    def imports(self) -> Iterator[Import]:
        """Those of the package itself, lazy ones and those for type checkers included."""
        for source, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    for target in self._targets(source, node):
                        yield Import(source, target, self.paths[source], node.lineno)

    def _targets(self, source: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                is_package = self.paths[source].name == "__init__.py"
                parts = source.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            names = [
                full
                if (full := f"{base}.{alias.name}") in self.trees
                and not self._shows(base, alias.name)
                else base
                for alias in node.names
            ]
        yield from (name for name in dict.fromkeys(names) if name in self.trees)

    def _shows(self, package: str, name: str) -> bool:
        """Whether a package binds the name itself, so that it hides a module of that name."""
        body = self.trees[package].body if package in self.trees else []
        return any(
            name in (alias.asname or alias.name for alias in node.names)
            for node in body
            if isinstance(node, ast.ImportFrom) and node.module not in (None, package)
        )


def cycles(package: Package) -> list[str]:
    """One line for each knot of modules that import each other."""
    edges: dict[str, dict[str, int]] = {module: {} for module in package.trees}
    for one in package.imports():
        if one.source != one.target:
            edges[one.source].setdefault(one.target, one.line)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += edges[module]
        return seen

    reach = {module: reachable(module) for module in edges}
    knots = {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in edges
        if module in reach[module]
    }
    return [
        "a cycle: "
        + ", ".join(
            f"{package.where(module, line)} imports {target}"
            for module in sorted(knot)
            for target, line in edges[module].items()
            if target in knot
        )
        for knot in sorted(knots, key=sorted)
    ]


def upward(package: Package, layers: tuple[frozenset[str], ...] = LAYERS) -> list[str]:
    """Imports of a part that is not in a lower layer, and parts that are in none."""
    height = {part: level for level, layer in enumerate(layers) for part in layer}
    parts = {package.part(module): module for module in package.trees}
    found = [
        f"{package.where(module, 1)}: {part} is in no layer"
        for part, module in parts.items()
        if part not in height
    ]
    for one in package.imports():
        source, target = package.part(one.source), package.part(one.target)
        known = source in height and target in height
        if known and source != target and height[source] <= height[target]:
            way = "up" if height[source] < height[target] else "sideways"
            found.append(f"{package.where(one.source, one.line)}: {source} imports {way}, {target}")
    return found


def past_the_face(package: Package) -> list[str]:
    """Imports of what lies inside another part, and of another part's private names."""
    found = [
        f"{package.where(one.source, one.line)}: reaches past the face to {one.target}"
        for one in package.imports()
        if one.target.count(".") > 1 and package.part(one.source) != package.part(one.target)
    ]
    for source, tree in package.trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or node.level:
                continue
            base = node.module or ""
            if base not in package.trees or package.part(base) == package.part(source):
                continue
            found += [
                f"{package.where(source, node.lineno)}: imports the private {base}.{alias.name}"
                for alias in node.names
                if private(alias.name) and f"{base}.{alias.name}" not in package.trees
            ]
    return found


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def private_access(package: Package) -> list[str]:
    """Private attributes of what is not ``self``, by names that the part does not define."""
    defined: dict[str, set[str]] = {}
    for module, tree in package.trees.items():
        defined.setdefault(package.part(module), set()).update(own_names(tree))
    return [
        f"{package.where(module, node.lineno)}: {ast.unparse(node)}"
        for module, tree in package.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and not is_self(node.value)
        and node.attr not in defined[package.part(module)]
        and node.attr not in FOREIGN
        and not node.attr.startswith(SAVED)
    ]


def own_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, fields, variables, and attributes that are set on ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and is_self(node.value)
        ):
            yield node.attr


def is_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


LIBRARY = Package(ROOT / "reweight")
EXAMPLE = Package(ROOT / "examples" / "cdr")
CHECKS = (cycles, upward, past_the_face, private_access)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_library_is_built_in_layers(check: Callable[[Package], list[str]]) -> None:
    found = check(LIBRARY)
    assert not found, "\n" + "\n".join(found)


# The example's parts, lowest first. They import each other's modules, not only faces: a face would
# load torch or pyarrow for those who want neither.
EXAMPLE_LAYERS = (
    frozenset({"__init__"}),
    frozenset({"common"}),
    frozenset({"data"}),
    frozenset({"models"}),
    frozenset({"training"}),
    frozenset({"report", "runs"}),
    frozenset({"paper"}),
    frozenset({"reproduce", "results", "run_biao"}),
)


def test_the_example_is_built_in_layers() -> None:
    found = [*cycles(EXAMPLE), *upward(EXAMPLE, EXAMPLE_LAYERS), *private_access(EXAMPLE)]
    assert not found, "\n" + "\n".join(found)


# -- the checks themselves -------------------------------------------------------------------------

SMALL = (frozenset({"_low"}), frozenset({"left", "right"}), frozenset({"__init__"}))
SOUND = {
    "__init__.py": "from made.left import Left\n",
    "_low/__init__.py": "from made._low.sums import add, sums\n",
    "_low/sums.py": "def add(): ...\n\nsums = 1\n",
    "left.py": "import torch\nfrom made._low import add\n\nclass Left:\n    _kept = 1\n"
    "\n    def same(self, other):\n        return self._kept == other._kept\n",
    "right.py": "from made._low import sums\nfrom made import _low\n",
}


def made(tmp_path: Path, changes: dict[str, str] | None = None) -> Package:
    """A small package in layers, with some of its files replaced."""
    folder = tmp_path / "made"
    for name, text in (SOUND | (changes or {})).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return Package(folder)


def test_a_sound_package_has_no_offender(tmp_path: Path) -> None:
    package = made(tmp_path)
    assert not cycles(package) and not upward(package, SMALL)
    assert not past_the_face(package) and not private_access(package)


@pytest.mark.parametrize(
    "text",
    [
        "from made.left import Left",
        "def later():\n    from made.left import Left",
        "import made.left",
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(tmp_path: Path, text: str) -> None:
    (found,) = upward(made(tmp_path, {"_low/sums.py": text}), SMALL)
    assert found.startswith("made/_low/sums.py:") and "left" in found


def test_an_import_of_the_same_layer_is_found(tmp_path: Path) -> None:
    (found,) = upward(made(tmp_path, {"left.py": "\nfrom made import right"}), SMALL)
    assert found.startswith("made/left.py:2:") and "right" in found


def test_an_import_of_the_whole_package_is_found(tmp_path: Path) -> None:
    (found,) = upward(made(tmp_path, {"right.py": "from made import Left"}), SMALL)
    assert found.startswith("made/right.py:1:") and "__init__" in found


def test_a_part_without_a_layer_is_found(tmp_path: Path) -> None:
    (found,) = upward(made(tmp_path, {"middle.py": ""}), SMALL)
    assert found.startswith("made/middle.py:1:")


@pytest.mark.parametrize("text", ["from made._low.more import b", "from .more import b"])
def test_a_cycle_is_found_with_both_of_its_lines(tmp_path: Path, text: str) -> None:
    more = "\nimport made._low.sums\n\nb = 1\n"
    package = made(tmp_path, {"_low/sums.py": f"{text}\nadd = sums = b", "_low/more.py": more})
    (found,) = cycles(package)
    assert "made/_low/sums.py:1" in found and "made/_low/more.py:2" in found


@pytest.mark.parametrize(
    "text",
    ["from made._low.sums import add", "import made._low.sums", "from ._low.sums import add"],
)
def test_a_reach_past_the_face_is_found(tmp_path: Path, text: str) -> None:
    (found,) = past_the_face(made(tmp_path, {"right.py": text}))
    assert found.startswith("made/right.py:1:") and "made._low.sums" in found


def test_a_private_name_of_another_part_is_found(tmp_path: Path) -> None:
    (found,) = past_the_face(made(tmp_path, {"right.py": "from made.left import _hidden"}))
    assert found.startswith("made/right.py:1:") and "_hidden" in found


def test_a_private_attribute_of_another_part_is_found(tmp_path: Path) -> None:
    text = "def read(x, node):\n    return x._kept, x._buffers, node._saved_index, x.__class__\n"
    (found,) = private_access(made(tmp_path, {"right.py": text}))
    assert found == "made/right.py:2: x._kept"
    # Setting it on something foreign makes it no name of one's own.
    (found,) = private_access(made(tmp_path, {"right.py": "def put(x):\n    x._kept = 2\n"}))
    assert found == "made/right.py:2: x._kept"
