"""Lines that a file holds twice, and items that a user meets again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdr.data import Batches, CrossDomainData, Hidden, Interactions, audit, build, hidden, load

LINES = [
    "u,a,5,1,books",
    "u,b,5,2,books",
    "u,a,4,3,books",  # again, later
    "u,x,5,3,toys",
    "u,y,5,4,toys",
    "u,x,1,5,toys",  # again, of validation
    "u,y,5,6,toys",  # again, of test
    "v,a,5,,books",
    "v,x,5,1,toys",
]


def scenario(folder: Path, lines: list[str]) -> CrossDomainData:
    (folder / "log.csv").write_text("\n".join(["user,item,rating,timestamp,domain", *lines]))
    return load("log.csv", folder, "books", "toys")


def rows_of(data: CrossDomainData) -> list[list[int]]:
    parts = (data.source, data.train, data.valid, data.test)
    return [column.tolist() for part in parts for column in (part.user, part.item, part.label)]


@pytest.mark.parametrize("repeated", [[0], [3], [6], [7], [0, 0, 2, 3, 7]])
def test_a_repeated_line_is_read_once_and_counted(repeated: list[int], tmp_path: Path) -> None:
    once = scenario(tmp_path, LINES)
    data = scenario(tmp_path, [*LINES, *(LINES[place] for place in repeated)])
    assert rows_of(data) == rows_of(once) and data.statistics == once.statistics
    source = sum("books" in LINES[place] for place in repeated)
    told = f"{source} source and {len(repeated) - source} target lines repeat another one"
    assert [told in note for note in data.notes].count(True) == 1
    assert data.repaired == {"repeated lines": len(repeated)} and once.repaired == {}


def test_a_line_that_differs_in_anything_is_another_behaviour(tmp_path: Path) -> None:
    for other in (
        "u,a,2,1,books",
        "u,a,5,1,toys",
        "v,a,5,1,books",
        "u,a,5,0,books",
        "u,A,5,1,books",
    ):
        data = scenario(tmp_path, [*LINES, other])
        assert data.repaired == {}
        assert data.statistics["source"] + data.statistics["target"] == len(LINES) + 1


def test_rows_in_memory_are_merged_where_asked_only() -> None:
    def rows(item: str, times: list[float], order: list[int] | None = None) -> Interactions:
        num = len(times)
        columns = [np.full(num, "u"), np.full(num, item), np.ones(num, dtype=bool)]
        return Interactions(*columns, np.array(times), None if order is None else np.array(order))

    source, nan = rows("s", [0.0]), float("nan")
    assert build("x", source, rows("t", [1, 1, 1, 1])).statistics["target"] == 4
    data = build("x", source, rows("t", [1, 1, 2, 2, 3]), merge_lines=True)
    assert data.statistics["target"] == 3 and data.repaired == {"repeated lines": 2}
    # Of unknown times `order` tells behaviours apart.
    data = build("x", source, rows("t", [1, nan, nan], [0, 1, 2]), merge_lines=True)
    assert data.statistics["target"] == 3 and data.repaired == {}
    with pytest.raises(ValueError, match="merge_lines.*extra_test"):
        build("x", source, rows("t", [1, 2, 3]), extra_test=source, merge_lines=True)


def test_items_that_a_user_meets_again_are_counted(tmp_path: Path) -> None:
    (note,) = (n for n in scenario(tmp_path, LINES).notes if "had met before" in n)
    assert note.startswith("1 source and 2 target behaviours (1 of validation, 1 of test)")
    without = [line for place, line in enumerate(LINES) if place not in (2, 5, 6)]
    more = ["u,z,1,7,toys"]
    assert not any("had met before" in n for n in scenario(tmp_path, without + more).notes)


def test_the_audit_counts_the_histories_that_hide_an_item(tmp_path: Path) -> None:
    data = scenario(tmp_path, LINES)
    assert hits(data) == [("valid", 0), ("test", 0)]
    # And the second time of book a.
    assert audit(data) == Hidden(source=1, target=2)
    fresh = [*LINES[:2], *LINES[3:5], *LINES[7:], "u,z,1,9,toys"]
    assert audit(scenario(tmp_path, fresh)) == Hidden(source=0, target=0)


def hits(data: CrossDomainData) -> list[tuple[str, int]]:
    """Target rows whose own item is among the positives before them, one by one."""
    found = []
    for name in ("train", "valid", "test"):
        rows = getattr(data, name)
        for row, (first, end) in enumerate(rows.target_past.tolist()):
            if rows.item[row] in data.target_history.items[first:end]:
                found.append((name, row))
    return found


def test_the_audit_finds_batches_that_show_the_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Showing(Batches):
        """Batches that mask nothing."""

        def source_rows(self, rows: torch.Tensor):
            batch = super().source_rows(rows)
            shown = batch.source_history
            items, mask = self.data.source_history.gather(rows, shown.mask.shape[1])
            shown = replace(shown, items=replace(shown.items, item=items), mask=mask)
            return replace(batch, source_history=shown)

    data = scenario(tmp_path, LINES)
    monkeypatch.setattr(hidden, "Batches", Showing)
    with pytest.raises(ValueError, match="item of the candidate in source_history"):
        audit(data)
