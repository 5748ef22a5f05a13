"""Processes that train one model together: the results of one process, and the same in all."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from _support.processes import in_processes
from scenarios import NUM_USERS, brief

from cdr.common import ALONE, Processes, map_tensors
from cdr.data import CrossDomainData, generate
from cdr.training.loop import Result, Training, train
from cdr.training.options import Options

# Of each, an epoch of batches that do not divge evenly among processes, in float64.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "S": ("S", "conet", {}),
    "0": ("0", "conet", {}),
    "base": ("base", "conet", {}),
    "oracle": ("oracle", "conet", {}),
    "base, tables by rows": ("base", "conet", {"inner.lazy_tables": True}),
    "base, source drawn from all": ("base", "minet", {"inner.source_batch": "independent"}),
    "ours": ("ours", "conet", {}),
    "ours, weights ahead": ("ours", "minet", {"outer.weights_ahead": 2}),
    "ours, softmax, split": ("split-0.2", "twotower", {"perceptron.normalization": "softmax"}),
    "ours, dev head": ("ours", "conet", {"model.dev_head": True, "outer.dev_head_steps": 2}),
    "search": ("search", "conet", {}),
    "loss": ("loss", "conet", {}),
    "group": ("group", "conet", {}),
    "constant, identity": ("constant", "conet", {"outer.solver": "identity"}),
}


def small_data() -> CrossDomainData:
    data = generate(num_users=NUM_USERS, num_source_items=200, num_target_items=100)
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, data)


def told(case: str) -> tuple[str, Options]:
    variant, model, changes = CASES[case]
    # 250 training rows: batches of 61 leave ragged shares, and a last batch of a few rows.
    changes = {"inner.batch_size": 61, "outer.batch_size": 31, "inner.epochs": 2} | changes
    return variant, brief(model).changed(changes)


def numbers(result: Result) -> dict[str, Any]:
    """What a training comes to, as arrays."""
    found = {f"model.{k}": v.numpy() for k, v in result.state["model"].items()}
    if "weighter" in result.state:
        found |= {k: v.numpy() for k, v in result.state["weighter"]["weighter"].items()}
    found["test"] = result.test.probability
    found["loss"] = np.array([record["loss"] for record in result.history])
    if result.weights is not None:
        found["weights"] = result.weights
    return {name: np.array(value) for name, value in found.items()}


def train_cases(cases: list[str]) -> dict[str, dict[str, Any]]:
    """Each case, by the processes of the default group if there is one."""
    processes = Processes(dist.group.WORLD) if dist.is_initialized() else ALONE
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data, results = small_data(), {}
        for case in cases:
            variant, options = told(case)
            results[case] = numbers(train(variant, data, options, 3, processes=processes))
    finally:
        torch.set_default_dtype(before)
    return results


@dataclass
class Both:
    one: dict[str, dict[str, Any]]
    several: list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module", params=[2])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("together")
    several = in_processes(train_cases, request.param, folder, list(CASES))
    return Both(train_cases(list(CASES)), several)


@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_result_of_one(both: Both, case: str) -> None:
    first, *others = (each[case] for each in both.several)
    for name, expected in both.one[case].items():
        found = first[name]
        for other in others:
            assert np.array_equal(other[name], found), f"{name} differs between processes"
        print(case, name, np.abs(found - expected).max())
