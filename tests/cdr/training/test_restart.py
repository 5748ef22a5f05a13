"""A model whose ReLUs are all at zero: it is noticed, begun once more, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cdr.run_biao
from cdr.data import CrossDomainData
from cdr.report import begun_again
from cdr.report.summary import summarize
from cdr.training import COLLAPSED, loop, remark
from cdr.training.epochs import train
from cdr.training.evaluation import Scores
from cdr.training.loop import Training
from cdr.training.options import Options
from cdr.training.saves import Saves
from cdr.training.side_by_side import train_side_by_side


def _bury(model: Any) -> None:
    """Biases so far below zero that no unit of the last layer is above it for any row."""
    with torch.no_grad():
        model.target_tower[-1].bias.fill_(-100.0)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[nn.Module]]:
    """Has the first so many models begin with dead towers; returns all that are made."""
    make = loop._model

    def first(count: int) -> list[nn.Module]:
        made: list[nn.Module] = []

        def model(*arguments: Any) -> nn.Module:
            made.append(make(*arguments))
            if len(made) <= count:
                _bury(made[-1])
            return made[-1]

        monkeypatch.setattr(loop, "_model", model)
        return made

    return first


def several_epochs() -> Options:
    """Of the usual tower: one of three units, as in other tests, is often dead by chance."""
    inner = {"inner.epochs": 3, "inner.patience": 2, "inner.batch_size": 64}
    return Options().changed({**inner, "outer.interval": 2, "outer.batch_size": 64})


@pytest.mark.parametrize("variant", ["S", "ours"])
def test_a_dead_tower_is_begun_once_more(
    tiny: CrossDomainData, dead: Callable[[int], list[nn.Module]], variant: str
) -> None:
    made = dead(1)
    result = train(variant, tiny, several_epochs(), seed=0)
    assert len(made) == 2 and result.restarted and remark(result.scores) != COLLAPSED
    # Another initialization, not the same once more.
    assert len(result.history) <= 3 and result.history[0]["epoch"] == 1
    assert not torch.equal(made[0].user.weight, made[1].user.weight)


def test_the_second_training_is_kept_whatever_it_is(
    tiny: CrossDomainData, dead: Callable[[int], list[nn.Module]]
) -> None:
    made = dead(2)
    result = train("S", tiny, several_epochs(), seed=0)
    assert len(made) == 2 and result.restarted and remark(result.scores) == COLLAPSED


def test_a_training_that_tells_rows_apart_is_left_alone(
    tiny: CrossDomainData, dead: Callable[[int], list[nn.Module]]
) -> None:
    made = dead(0)
    assert not train("S", tiny, several_epochs(), seed=0).restarted and len(made) == 1


def test_a_tower_that_dies_later_is_not_begun_once_more(tiny: CrossDomainData) -> None:
    training = Training("S", tiny, several_epochs(), seed=0)
    training.run_epoch(lambda *_: None)
    _bury(training.model)
    while not training.done:
        training.run_epoch(lambda *_: None)
    assert training.epoch > 1 and not training.collapsed


@pytest.mark.slow
def test_an_initialization_of_conet_can_be_dead(tiny: CrossDomainData) -> None:
    # One in 500: that none is among 3,000 has a probability of .002, and seeds are fixed.
    options = replace(Options(), inner=replace(Options().inner, epochs=1))
    for seed in range(3000):
        torch.manual_seed(seed)
        model = options.model_class(tiny, options.model, True)
        training_rows = torch.cat(
            [model.user(tiny.train.user), model.target_items.item(tiny.train.item)], -1
        )
        category = tiny.target_items.category[tiny.train.item]
        x = torch.cat([training_rows, model.target_items.category(category)], -1)
        for layer in model.target_tower:
            x = layer(x).relu()
        if not x.any():
            break
    result = train("S", tiny, options, seed)
    assert result.restarted and remark(result.scores) != COLLAPSED


def test_in_common_steps_a_dead_seed_is_begun_once_more(
    gappy: CrossDomainData, dead: Callable[[int], list[nn.Module]]
) -> None:
    made = dead(1)
    first, second = train_side_by_side("S", gappy, several_epochs(), (0, 1))
    assert (first.restarted, second.restarted, len(made)) == (True, False, 3)
    assert remark(first.scores) != COLLAPSED


def test_a_checkpoint_goes_on_with_the_second_training(
    tiny: CrossDomainData, dead: Callable[[int], list[nn.Module]], tmp_path: Path
) -> None:
    dead(1)
    expected = train("S", tiny, several_epochs(), seed=0)

    def stop(epoch: int, *_: object) -> None:
        if len(made) == 2 and epoch == 1:
            raise InterruptedError

    made = dead(1)
    with pytest.raises(InterruptedError):
        train(
            "S",
            tiny,
            several_epochs(),
            seed=0,
            saves=Saves(tmp_path / "S", required=True),
            on_step=stop,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"S", "S-restarted"}
    made = dead(1)
    result = train("S", tiny, several_epochs(), seed=0, saves=Saves(tmp_path / "S", required=True))
    assert result.restarted and len(made) == 2
    np.testing.assert_array_equal(result.test.probability, expected.test.probability)
    assert len(result.history) == len(expected.history)


@pytest.mark.parametrize(("spread", "equal"), [(0.0, True), (1e-7, True), (1e-5, False)])
def test_scores_that_differ_by_rounding_are_equal(spread: float, equal: bool) -> None:
    # One unit in the last place of a float32 near .59 is 6e-8.
    probability = np.full(60, 0.59, np.float32)
    probability[-4:] += np.float32(spread)
    assert Scores(probability, np.arange(60) % 2, np.arange(60)).equal == equal


def test_a_restart_is_named_in_the_results(
    tiny: CrossDomainData, dead: Callable[[int], list[nn.Module]]
) -> None:
    dead(1)
    runs = {seed: train("S", tiny, several_epochs(), seed=seed) for seed in (0, 1)}
    told = begun_again([summarize("CoNet-S", runs)])
    assert told.startswith("Restarted once, CoNet-S seed 0: all validation rows")
    assert begun_again([summarize("CoNet-S", {1: runs[1]})]) == ""


def test_a_run_prints_and_logs_it(
    ratings: Path,
    tmp_path: Path,
    dead: Callable[[int], list[nn.Module]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead(1)
    given = ("--data", ratings, "--source", "books", "--target", "toys", "--variants", "S")
    brief = ("--inner.epochs", "1", "--inner.batch-size", "64", "--out", tmp_path / "one")
    assert cdr.run_biao.main([*map(str, (*given, *brief))]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("it was trained again from another initialization") == 2
    assert "seed 0: all validation rows" in (tmp_path / "one" / "log.txt").read_text()
