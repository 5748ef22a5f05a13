"""What the pages of Lightning and Accelerate tell to add is short, and runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reweight

PAGES = Path(__file__).parent.parent.parent / "docs" / "integrations"


def blocks(page: str, kind: str) -> list[str]:
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def changed(diff: str) -> tuple[str, int]:
    """The program after a change, and the number of lines that the change adds."""
    lines = [line for line in diff.splitlines() if not line.startswith("-")]
    added = [line for line in lines if line.startswith("+") and line != "+"]
    return "\n".join(line[1:] for line in lines), len(added)


def loader(samples: int = 640) -> Any:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(samples, 64), torch.randint(10, (samples,)))
    return DataLoader(data, batch_size=4)


def test_a_lightning_module_needs_fewer_than_fifteen_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the Trainer writes a checkpoint
    pytest.importorskip("lightning")
    (diff,) = blocks("lightning.md", "diff")
    program, added = changed(diff)
    assert added < 15
    names: dict[str, Any] = {"train_loader": loader(), "dev_loader": loader(16)}
    exec(program.replace("max_epochs=30", "max_epochs=1, logger=False, accelerator='cpu'"), names)
    assert names["callback"].reweighted.problem.progress.steps == 32  # 160 batches


def losses(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def outer_loss(model: Any, batch: Any) -> Tensor:
    return losses(model, batch).mean()


def test_a_loop_of_accelerate_runs_as_its_page_says() -> None:
    pytest.importorskip("accelerate")
    (diff,), (accumulated,) = blocks("accelerate.md", "diff"), blocks("accelerate.md", "python")
    model = torch.nn.Linear(64, 10)
    names: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "loader": loader(80),
        "dev_loader": loader(16),
        "losses": losses,
        "outer_loss": outer_loss,
    }
    program, added = changed(diff)
    assert added < 15
    exec(program, names)
    rw: reweight.Reweighted = names["rw"]
    assert rw.problem.progress.steps == 4  # 20 batches, from the first one
    exec(accumulated, names)
    assert rw.problem.progress.steps == 24
