"""Names from files control nothing that shows them, and what cannot be drawn costs nothing else."""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cdr.common import write_json
from cdr.report import (
    Document,
    Parts,
    Picture,
    learning_curves,
    plots,
    sheet,
    try_imports,
    write_page,
    written_in_parts,
)
from cdr.report import page as pages
from cdr.run_biao import main

NAMES = [
    "$x^2$ and $",
    "a\x1b[31mred",
    "a\nb\r\nc",
    "a\tb\0",
    "=1+1",
    "+A1",
    "-A1",
    "@SUM(A1)",
    " =1+1",
    "\t=1+1",
    "a|b",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "[a](http://b)",
    "`a`",
    "*a*",
    "_a_",
    "# a",
    "\u202eevil",
    "\ud800",
    "名前 имя é",
]


def document(name: str, pictures: tuple[Picture, ...] = ()) -> Document:
    table = sheet([name, "AUC"], [[name, "0.5"], ["base", "−.1"]], title=name)
    values = ({"method": name, "auc": -0.5},)
    return Document(name, (table,), pictures, (name,), values, (table,), (name,))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_controls_a_terminal(name: str) -> None:
    text = document(name).text()
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or ord(c) in (127, 0x202E, 0xD800))]
    assert len(text.splitlines()) == len(document("a").text().splitlines())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    head, row = csv.reader(io.StringIO(document(name).csv()))
    assert head == ["method", "auc"] and row[1] == "-0.5"
    assert not row[0].lstrip().startswith(("=", "+", "-", "@", "\t"))
    assert document("base").csv() == "method,auc\nbase,-0.5\n"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_is_markup_in_markdown(name: str) -> None:
    text = document(name).markdown()
    lines = text.splitlines()
    assert len(lines) == len(document("a").markdown().splitlines())
    assert sum(line.count("|") - line.count(r"\|") for line in lines) == 2 * 4 * 3
    for sign in ("<", "$", "`", "&", "]("):
        assert text.count(sign) == text.count("\\" + sign)
    assert "\n- # " not in text and "\n# " not in text and "\\\\" not in text


def test_what_is_no_markup_stays_as_it_is() -> None:
    text = "CoNet+ours Toys_and_Games [.1, .2] −.0012 (p .05) 0.5*"
    assert sheet([text], []).markdown() == f"| {text} |\n| --- |"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", {"data": "\udcff<b>"})
    write_json(tmp_path / "environment.json", {})
    (tmp_path / "command.txt").write_bytes(b"run_biao.py --data \xff<b>\n")
    return tmp_path


def test_names_in_pictures_and_on_the_page_are_shown_as_they_are(folder: Path) -> None:
    name = " ".join(NAMES)
    write_page(folder, document(name), {("", name): [[0.5, 0.6]]})
    ElementTree.parse(folder / "curves.svg")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not set("\x1b\0\u202e") & set(page)
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page


def test_what_cannot_be_drawn_costs_no_other_part(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(figure: Any) -> None:
        raise RuntimeError("no\n\x1b[31mfont")

    broken = Picture("broken", "Broken.", fail, 2.0)
    with caplog.at_level(logging.WARNING, "cdr"), written_in_parts("told: {}") as parts:
        for picture in (broken, learning_curves({("", "a"): [[0.5]]})):
            with parts.part(f"the picture {picture.name}"):
                picture.save(folder)
        write_page(folder, document("a", (broken,)), {}, parts=parts)
    assert parts.failed == ["the picture broken"]
    assert (folder / "curves.png").exists() and (folder / "report.html").exists()
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        "told: the picture broken could not be made, and is left out: RuntimeError: no ␛[31mfont"
    )
    assert len(caplog.records) == 1


def test_a_page_whose_weights_cannot_be_shown_is_written_without_them(folder: Path) -> None:
    class Broken:
        label = "a"

        @property
        def sentence(self) -> str:
            raise KeyError("category")

    parts = Parts()
    write_page(folder, document("a"), {}, [Broken()], parts)  # type: ignore[list-item]
    assert parts.failed == ["report.html with the learned weights"]
    assert "0.5" in (folder / "report.html").read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        write_page(folder, document("a"), {}, [Broken()])  # type: ignore[list-item]


def test_what_a_full_disk_refuses_is_told_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), written_in_parts() as parts:
        with parts.part("one"):
            raise OSError(28, "No space left on device")
        with parts.part("two"):
            (tmp_path / "two").write_text("")
    assert parts.failed == ["one"] and (tmp_path / "two").exists()


# Before the first training.


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Matplotlib is installed and cannot be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(plots, "find_spec", lambda name: object())
    plots.broken.cache_clear()
    yield
    plots.broken.cache_clear()


@pytest.mark.usefixtures("no_matplotlib")
def test_a_broken_matplotlib_is_told_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not plots.available()
    try_imports("told: {}")
    assert (
        "told: no pictures will be drawn: matplotlib cannot be imported" in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="pictures need matplotlib, and matplotlib cannot be imp"):
        plots.needed()


def test_a_report_that_cannot_be_made_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["--data", "gone.csv", "--out", str(tmp_path / "run")]) == 2
    assert "a report needs jinja2, which cannot be imported" in capsys.readouterr().err


def test_a_report_that_fails_leaves_the_trained_models(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ratings: Path,
) -> None:
    monkeypatch.setattr(pages, "TEMPLATE", "{{ document.gone.title }}")
    out = tmp_path / "run"
    brief = "--source books --target toys --inner.epochs 1 --inner.batch-size 64"
    brief += " --variants S --out"
    assert main(["--data", str(ratings), *brief.split(), str(out)]) == 1
    made = {path.name for path in out.iterdir()}
    assert {"table.md", "metrics.json", "curves.svg", "model-S-seed0.pt"} <= made
    assert "report.html" not in made
    assert (
        "run_biao.py: report.html could not be made, and is left out: UndefinedError"
        in capsys.readouterr().err
    )
