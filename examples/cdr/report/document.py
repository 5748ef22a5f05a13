"""The results of a command, to be printed, written as markdown or put on a page."""

from __future__ import annotations

import csv
import io
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cdr.report.plots import Picture
from cdr.report.readable import as_paragraph, in_csv, in_line, in_markdown


@dataclass(frozen=True)
class Sheet:
    """A table of texts.

    Attributes:
        title: may be empty.
        groups: of columns: their common heading, which may be empty, and the head of each.
        rows: as long as all heads together.
        left: how many columns, from the first, are aligned to the left.
    """

    title: str
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    @property
    def grouped(self) -> bool:
        """Whether any group has a heading."""
        return any(heading for heading, _ in self.groups)

    @property
    def heads(self) -> tuple[str, ...]:
        """One for each column, its group's heading in front."""
        return tuple(f"{group} {head}".strip() for group, heads in self.groups for head in heads)

    def markdown(self) -> str:
        """The table, its title above it."""
        rule = ["---"] * self.left + ["---:"] * (len(self.heads) - self.left)
        head, *body = [[in_markdown(cell) for cell in row] for row in (self.heads, *self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]
        title = [f"**{in_markdown(self.title)}**", ""] if self.title else []
        return "\n".join([*title, *lines])

    def text(self) -> str:
        """Aligned columns, the groups one below the other."""
        return self._shown()._text()

    def _shown(self) -> Sheet:
        """The table with each text in one line, without control characters."""
        groups = tuple((in_line(h), tuple(map(in_line, heads))) for h, heads in self.groups)
        rows = tuple(tuple(map(in_line, row)) for row in self.rows)
        return replace(self, title=in_line(self.title), groups=groups, rows=rows)

    def _text(self) -> str:
        parts = [self.title] if self.title else []
        if not self.grouped:
            return "\n".join([*parts, _aligned(self.heads, self.rows, self.left)])
        place = self.left
        for heading, heads in self.groups[1:]:
            end = place + len(heads)
            rows = [
                (*row[: self.left], *row[place:end]) for row in self.rows if any(row[place:end])
            ]
            labels = self.groups[0][1]
            parts.append(f"{heading}\n{_aligned((*labels, *heads), rows, self.left)}")
            place = end
        return "\n\n".join(parts)


def sheet(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, title: str = ""
) -> Sheet:
    """A table without groups."""
    return Sheet(title, (("", tuple(heads)),), tuple(map(tuple, rows)), left)


@dataclass(frozen=True)
class Document:
    """Tables, pictures and sentences under one title.

    Attributes:
        values: all numbers, one dict a line of the csv file, with the same keys.
        appendix: Tables for reference, which are not printed on the terminal.
        conclusions: Sentences on what the numbers show.
    """

    title: str
    sheets: tuple[Sheet, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    values: tuple[dict[str, object], ...] = field(default=(), repr=False)
    appendix: tuple[Sheet, ...] = ()
    conclusions: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Without the pictures."""
        notes = "\n".join(f"- {as_paragraph(note)}" for note in self.notes)
        sheets, appendix = ([s.markdown() for s in part] for part in (self.sheets, self.appendix))
        told = map(as_paragraph, self.conclusions)
        parts = [f"## {in_markdown(self.title)}", *sheets, *told, notes, *appendix]
        return "\n\n".join(part for part in parts if part) + "\n"

    def text(self) -> str:
        """For the terminal."""
        width = min(100, shutil.get_terminal_size((100, 0)).columns)
        notes = [
            textwrap.fill(in_line(n), width, initial_indent="• ", subsequent_indent="  ")
            for n in self.notes
        ]
        # Last, where a reader of the terminal looks first.
        concluded = [textwrap.fill(in_line(text), width) for text in self.conclusions]
        sheets = (sheet.text() for sheet in self.sheets)
        parts = [in_line(self.title), *sheets, "\n".join(notes), "\n".join(concluded)]
        return "\n\n".join(part for part in parts if part)

    def csv(self) -> str:
        """The numbers, six digits each; no text that a spreadsheet would take for a formula."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(in_csv, self.values[0]) if self.values else ())
        for line in self.values:
            writer.writerow(
                [f"{v:.6g}" if isinstance(v, float) else in_csv(v) for v in line.values()]
            )
        return text.getvalue()


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    wide = max(100, shutil.get_terminal_size((100, 0)).columns)
    if left == len(heads):
        # Nothing but text: the last column takes what is left, in several lines.
        widths[-1] = min(widths[-1], max(30, wide - sum(widths[:-1]) - 2 * len(heads)))
    lines = [line for row in (heads, *rows) for line in _lines(row, widths, left)]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _lines(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    wrapped = textwrap.wrap(row[-1], widths[-1]) or [""]
    filled = [(*row[:-1], wrapped[0]), *(("",) * (len(row) - 1) + (more,) for more in wrapped[1:])]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in filled
    ]
