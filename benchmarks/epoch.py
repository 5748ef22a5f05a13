"""The cost of an epoch of BIAO, compared with the base model and a textbook implementation.

    python benchmarks/epoch.py [--steps 1000] [--interval 100] [--batch-size 64] [--history 50]
                               [--device cpu] [--json FILE]
    python benchmarks/epoch.py --default-preset

The model is CoNet on generated data of the size of Books-Toys. The example and _textbook_biao.py
start from equal parameters and use the same batches. They run alternately, about a hundred steps
per turn, so that other load on the machine affects both equally. Times are medians over the turns.
They are processor times, which equal wall-clock times for one thread on an idle machine. On a GPU
they are wall-clock times. Ratios are computed within a turn.

The example makes the weights of 32 batches in one call (--outer.weights-ahead). A second run of it
makes them in every step, as the textbook does. Between these two the same run measures how
much the programs differ: in float64 before the timed steps, and in float32 over the timed steps. In
float32 the difference grows, because rounding can switch a ReLU in one program only. The last line
is the difference that weights ahead make within the first turn.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._behaviours import behaviours
from benchmarks._measure import machine
from benchmarks._textbook_biao import Biao, Perceptron, Rows, copy_from, in_this_layout
from benchmarks._textbook_biao import CoNet as TextbookCoNet
from cdr.data import CrossDomainData, build
from cdr.models.conet import CoNetOptions
from cdr.training import Options, Training, preset
from reweight import ReorderReuseSampler

SEED = 0
AHEAD = 32  # batches whose weights are made in one call
TURN = 100  # the least number of steps in a turn; a turn is a multiple of the interval
AGREEMENT_STEPS, AGREEMENT_INTERVAL = 40, 10
PROFILED = 100  # steps in which the phases are timed separately

TEXTBOOK, TEXTBOOK_BASE = "textbook BIAO", "textbook base"
EXAMPLE, EXAMPLE_BASE = "example BIAO", "example base"
EXAMPLE_EACH = "example BIAO, weights in each step"
EXAMPLE_AUTO = "example BIAO, step size auto"
PHASES = ("batch", "model", "perceptron", "backward", "optimizer")


# -- the task ------------------------------------------------------------------------------------


def books_toys() -> CrossDomainData:
    """Random behaviours with the counts of Books-Toys (BIAO, Table 4)."""
    rng = np.random.default_rng(SEED)
    return build(
        "Books-Toys' size",
        behaviours(rng, num_users=7_576, num_items=134_350, num_rows=317_646),
        behaviours(rng, num_users=7_576, num_items=11_567, num_rows=84_564),
    )


def options(batch_size: int, history: int, interval: int) -> Options:
    """The paper's options with a small CoNet and a step size at which the series converges."""
    paper = preset("paper", "conet")
    told = replace(
        paper,
        model=CoNetOptions(),
        inner=replace(paper.inner, lr=1e-3, weight_decay=1e-4, batch_size=batch_size),
        outer=replace(paper.outer, batch_size=batch_size, interval=interval, step_size=0.1),
        perceptron=replace(paper.perceptron, history=history),
    )
    return made_ahead(told)


def made_ahead(told: Options) -> Options:
    """The same with weights that are made ahead."""
    return replace(told, outer=replace(told.outer, weights_ahead=AHEAD))


def in_each_step(told: Options) -> Options:
    """The same without weights that are made ahead, as in the textbook."""
    return replace(told, outer=replace(told.outer, weights_ahead=1))


def in_double(data: CrossDomainData) -> CrossDomainData:
    """The same data with float64 labels, for a float64 model."""
    return replace(
        data,
        source=replace(data.source, label=data.source.label.double()),
        train=replace(data.train, label=data.train.label.double()),
    )


def shuffled(num: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of train and dev rows, drawn as in the example."""
    sampler = ReorderReuseSampler(num, min(batch_size, num // 2), seed=seed)
    while True:
        yield from sampler


# -- the programs that are compared --------------------------------------------------------------


class Clock:
    """Adds up the time between laps, by phase, while ``spent`` is a dict."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] | None = None
        self.last = 0.0

    def now(self) -> float:
        """Processor seconds on a CPU; wall-clock seconds, after synchronization, on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def lap(self, phase: str) -> None:
        if self.spent is not None:
            now = self.now()
            self.spent[phase] += now - self.last
            self.last = now


@dataclass
class Runner:
    """One of the programs that are compared; its parts call ``clock.lap``."""

    clock: Clock
    batches: Iterator[Any]
    loss: Callable[[Any], Tensor]
    optimizer: torch.optim.Optimizer
    outer_step: Callable[[], None] | None = None
    hypergradient: Callable[[], dict[str, Tensor]] | None = None
    model: nn.Module | None = None
    weighter: nn.Module | None = None
    losses: list[Tensor] = field(default_factory=list)
    done: int = 0

    def steps(self, num: int) -> float:
        """Run ``num`` inner steps; return the seconds."""
        clock, start = self.clock, self.clock.now()
        for _ in range(num):
            batch = next(self.batches)
            clock.lap("batch")
            loss = self.loss(batch)
            clock.lap("model")
            self.optimizer.zero_grad()
            loss.backward()
            clock.lap("backward")
            self.optimizer.step()
            clock.lap("optimizer")
            self.losses.append(loss.detach())
            self.done += 1
        return clock.now() - start

    def profile(self, num: int) -> dict[str, float]:
        """The seconds of each phase, per inner step."""
        spent = self.clock.spent = dict.fromkeys(PHASES, 0.0)
        self.clock.last = self.clock.now()
        self.steps(num)
        self.clock.spent = None
        return {phase: seconds / num for phase, seconds in spent.items()}

    def outer(self) -> float:
        """Run an outer step; return the seconds."""
        start = self.clock.now()
        if self.outer_step is not None:
            self.outer_step()
        return self.clock.now() - start


def example(
    data: CrossDomainData, told: Options, *, biao: bool = True, double: bool = False
) -> Runner:
    """The example, built as in `cdr.training.epochs.train`."""
    training = Training("ours" if biao else "base", data, told, SEED)
    model, learner, batches = training.model, training.learner, training.batches
    if double:
        model.double()
    rows = (rows for rows, _ in shuffled(len(data.train), told.inner.batch_size, SEED))
    runner = Runner(
        clock=Clock(data.source_offsets.device),
        batches=map(batches.train_pairs, rows),
        loss=training.loss,
        optimizer=training.optimizer,
        model=model,
    )
    if learner:
        weighter = learner.rw.weighter
        if double:
            weighter.double()
        with torch.no_grad():  # away from the start: a last layer of zeros passes no gradient on
            for parameter in weighter.parameters():
                parameter += 0.1 * torch.randn(parameter.shape).to(parameter)
        interval = told.outer.interval
        runner.batches = learner.train_batches(
            batches, rows, lambda: interval - runner.done % interval
        )
        if told.outer.weights_ahead > 1:
            _lap_around(weighter, "scores", runner.clock, "batch", "perceptron")
        else:
            _lap_around(weighter, "forward", runner.clock, "model", "perceptron")
        runner.weighter = weighter
        runner.outer_step = lambda: learner.outer_step(batches)
        runner.hypergradient = lambda: in_this_layout(
            {name: p.grad for name, p in weighter.named_parameters() if p.grad is not None}
        )
    return runner


def _lap_around(weighter: nn.Module, method: str, clock: Clock, before: str, after: str) -> None:
    """Have a method of the weighter end a phase when it is called, and one when it returns."""
    call = getattr(weighter, method)

    def timed(*arguments: Any) -> Tensor:
        clock.lap(before)
        result: Tensor = call(*arguments)
        clock.lap(after)
        return result

    setattr(weighter, method, timed)


def textbook(
    data: CrossDomainData, told: Options, twin: Runner, num_steps: int, *, double: bool = False
) -> Runner:
    """The textbook program with the parameters of ``twin`` and the rows that ``twin`` will draw."""
    device = data.source_offsets.device
    model = TextbookCoNet(data, told).to(device)
    perceptron = None if twin.weighter is None else Perceptron(told).to(device)
    if double:
        model.double()
        if perceptron is not None:
            perceptron.double()
    assert twin.model is not None
    copy_from(twin.model, twin.weighter, model, perceptron)
    biao = Biao(model, perceptron, told)
    rows = Rows(data, told.perceptron.history if perceptron else 0, SEED)
    clock = Clock(device)

    def loss(batch: Any) -> Tensor:
        target, source = model.losses(batch)
        if perceptron is None:
            return target + told.inner.gamma * source.mean()
        embeddings = model.embeddings(batch)
        clock.lap("model")
        with torch.no_grad():
            weights = biao.weights(batch, embeddings)
        clock.lap("perceptron")
        return target + (weights * source).mean()

    # Drawn before the timing: slices of one shuffled tensor would cost almost nothing.
    inner = list(islice(shuffled(len(data.train), told.inner.batch_size, SEED), num_steps))
    inner_batches = (rows.batch(train) for train, _ in inner)
    runner = Runner(clock, inner_batches, loss, biao.optimizer, model=model)
    if perceptron is not None:
        num_outer = num_steps // told.outer.interval
        pairs = shuffled(len(data.train), told.outer.batch_size, SEED + 1)
        outer = iter(list(islice(pairs, num_outer)))

        def outer_step() -> None:
            train, dev = next(outer)
            biao.outer_step(rows.batch(train), rows.batch(dev))

        runner.weighter = perceptron
        runner.outer_step = outer_step
        runner.hypergradient = lambda: {
            name: p.grad for name, p in perceptron.named_parameters() if p.grad is not None
        }
    return runner


# -- how much they differ ------------------------------------------------------------------------


@dataclass
class Difference:
    """The largest relative differences so far."""

    losses: float = 0.0
    hypergradients: float = 0.0

    def look(self, one: Runner, other: Runner) -> None:
        """Compare the losses since they were last cleared, and the last hypergradients."""
        a, b = torch.stack(one.losses), torch.stack(other.losses)
        assert one.hypergradient and other.hypergradient
        found, expected = one.hypergradient(), other.hypergradient()
        names = sorted(expected)
        x, y = (torch.cat([g[name].flatten() for name in names]) for g in (found, expected))
        self.losses = max(self.losses, float(((a - b).abs() / b.abs()).max()))
        self.hypergradients = max(self.hypergradients, float((x - y).norm() / y.norm()))


def agreement(data: CrossDomainData, told: Options, num_steps: int) -> Difference:
    """The difference between example and textbook in float64."""
    data, told, difference = in_double(data), in_each_step(told), Difference()
    ours = example(data, told, double=True)
    theirs = textbook(data, told, ours, num_steps, double=True)
    for _ in range(num_steps // told.outer.interval):
        for runner in (ours, theirs):
            runner.losses.clear()
            runner.steps(told.outer.interval)
            runner.outer()
        difference.look(ours, theirs)
    return difference


# -- the measurement -----------------------------------------------------------------------------


def race(data: CrossDomainData, told: Options, num_steps: int) -> dict[str, Any]:
    """The seconds of every turn and of the phases, and the differences."""
    _, turn, turns = lengths(told.outer.interval, num_steps)
    total = (1 + turns) * turn + PROFILED
    ours, base = example(data, told), example(data, told, biao=False)
    auto = replace(told, outer=replace(told.outer, step_size="auto"))
    runners = {
        TEXTBOOK_BASE: textbook(data, told, base, total),
        TEXTBOOK: textbook(data, told, ours, total),
        EXAMPLE_BASE: base,
        EXAMPLE: ours,
        EXAMPLE_EACH: example(data, in_each_step(told)),
        EXAMPLE_AUTO: example(data, auto),
    }
    first_difference, difference, ahead = Difference(), Difference(), Difference()

    def compare(lap: int) -> None:
        nonlocal first_difference
        difference.look(runners[EXAMPLE_EACH], runners[TEXTBOOK])
        if lap == 0:
            first_difference = replace(difference)
            ahead.look(runners[EXAMPLE], runners[EXAMPLE_EACH])

    return {
        **timed(runners, told.outer.interval, num_steps, compare),
        "differences": {
            f"float32, {turn} steps": vars(first_difference),
            f"float32, {(1 + turns) * turn} steps": vars(difference),
            f"weights ahead against in each step, {turn} steps": vars(ahead),
        },
    }


def race_of_default(data: CrossDomainData, told: Options, num_steps: int) -> dict[str, Any]:
    """The same for the default preset, which the textbook does not have."""
    runners = {
        EXAMPLE_BASE: example(data, told, biao=False),
        EXAMPLE: example(data, made_ahead(told)),
        EXAMPLE_EACH: example(data, in_each_step(told)),
    }
    return {**timed(runners, told.outer.interval, num_steps), "differences": {}}


def lengths(interval: int, num_steps: int) -> tuple[int, int, int]:
    """Outer steps in a turn, inner steps in a turn, and turns."""
    outer_steps = math.ceil(TURN / interval)
    turn = outer_steps * interval
    return outer_steps, turn, max(1, round(num_steps / turn))


def timed(
    runners: dict[str, Runner],
    interval: int,
    num_steps: int,
    compare: Callable[[int], None] = lambda lap: None,
) -> dict[str, Any]:
    """The seconds of every turn and of the phases; ``compare`` is called after each turn of all."""
    outer_steps, turn, turns = lengths(interval, num_steps)
    first: dict[str, float] = {}
    inner: dict[str, list[float]] = {name: [] for name in runners}
    outer: dict[str, list[float]] = {name: [] for name in runners}
    for lap in range(1 + turns):
        for name, runner in runners.items():
            runner.losses.clear()
            seconds = [(runner.steps(interval), runner.outer()) for _ in range(outer_steps)]
            if lap == 0:  # warm-up: allocators, caches, and the library's audit of the losses
                first[name] = seconds[0][1]
                continue
            inner[name].append(statistics.fmean(s for s, _ in seconds) / interval)
            outer[name].append(statistics.fmean(s for _, s in seconds))
        compare(lap)
    return {
        "steps": turns * turn,
        "inner": inner,
        "outer": outer,
        "first_outer": first,
        "phases": phases(runners),
    }


def phases(runners: dict[str, Runner]) -> dict[str, dict[str, float]]:
    """The seconds of each phase of an inner step, also measured in alternating turns."""
    some = PROFILED // 4
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(4):
        for name, runner in runners.items():
            found[name].append(runner.profile(some))
    return {
        # Not the median: weights that are made ahead are the work of a few turns.
        name: {phase: statistics.fmean(turn[phase] for turn in turns) for phase in PHASES}
        for name, turns in found.items()
    }


def summary(result: dict[str, Any], steps_of_epoch: int, interval: int) -> dict[str, Any]:
    """Medians and ratios of the measured times."""
    step = {
        name: [a + b / interval for a, b in zip(inner, result["outer"][name], strict=True)]
        for name, inner in result["inner"].items()
    }

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(step[one], step[other], strict=True))

    return {
        "step": {name: statistics.median(seconds) for name, seconds in step.items()},
        "least": {name: min(seconds) for name, seconds in step.items()},
        "outer": {name: statistics.median(s) for name, s in result["outer"].items()},
        "overhead": {
            name: statistics.median(s / i for s, i in zip(step[name], inner, strict=True))
            for name, inner in result["inner"].items()
        },
        "epoch": {name: statistics.median(s) * steps_of_epoch for name, s in step.items()},
        "ratios": {
            f"{one} / {other}": ratio(one, other)
            for one, other in (
                (TEXTBOOK, EXAMPLE),
                (TEXTBOOK, EXAMPLE_EACH),
                (TEXTBOOK, EXAMPLE_AUTO),
                (TEXTBOOK_BASE, EXAMPLE_BASE),
                (EXAMPLE, EXAMPLE_BASE),
                (EXAMPLE_EACH, EXAMPLE_BASE),
                (TEXTBOOK, TEXTBOOK_BASE),
            )
            if one in step and other in step
        },
    }


# -- the report ----------------------------------------------------------------------------------


def report(row: dict[str, Any]) -> None:
    found, interval = row["summary"], row["interval"]
    width = max(map(len, found["step"]))
    print(f"\n{'':{width}}  ms a step  least  outer step  first  overhead  epoch")
    for name, step in found["step"].items():
        line = f"{name:{width}}  {1e3 * step:9.2f}  {1e3 * found['least'][name]:5.2f}"
        if found["outer"][name] > 1e-4:
            line += (
                f"  {1e3 * found['outer'][name]:10.1f}  {1e3 * row['first_outer'][name]:5.0f}"
                f"  {found['overhead'][name]:8.3f}"
            )
        else:
            line += f"  {'':10}  {'':5}  {'':8}"
        print(f"{line}  {found['epoch'][name]:4.1f}s")
    print(
        f"overhead of outer steps: 1 + (K + 2)/interval = {row['ideal_overhead']:.3f} if a product "
        "cost an inner step"
    )
    print()
    for name, ratio in found["ratios"].items():
        print(f"{name:{2 * width}}  {ratio:5.2f}")
    print(f"\n{'ms a step':{width}}  " + "  ".join(f"{p:>10}" for p in (*PHASES, "outer")))
    for name, spent in row["phases"].items():
        times = [*(spent[phase] for phase in PHASES), found["outer"][name] / interval]
        cells = (f"{1e3 * t:5.2f} {t / sum(times):4.0%}" for t in times)
        print(f"{name:{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    if row["differences"]:
        print(
            "\nlargest relative difference of example and textbook BIAO in losses, hypergradients"
        )
    for kind, difference in row["differences"].items():
        print(f"{kind}:  {difference['losses']:.1e}, {difference['hypergradients']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="number of timed steps per program")
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument(
        "--default-preset",
        action="store_true",
        help="the example's default preset, without a textbook; not with the options above",
    )
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of negative curvature early in training
    data = books_toys().to(arguments.device)
    told = options(arguments.batch_size, arguments.history, arguments.interval)
    if arguments.default_preset:
        told = preset("default", "conet")
    steps_of_epoch = math.ceil(len(data.train) / told.inner.batch_size)
    length = (data.source_history.end - data.source_history.start).clamp(
        max=told.perceptron.history
    )
    print(machine(arguments.device))
    print(
        f"{len(data.train):,} training rows in batches of {told.inner.batch_size}, "
        f"{len(data.source):,} source rows, histories of {told.perceptron.history} with "
        f"{float(length.float().mean()):.0f} real source positives on average, "
        f"an outer step every {told.outer.interval} steps"
    )
    if arguments.default_preset:
        result = race_of_default(data, told, arguments.steps)
    else:
        result = race(data, told, arguments.steps)
        often = replace(told, outer=replace(told.outer, interval=AGREEMENT_INTERVAL))
        in_float64 = vars(agreement(data, often, AGREEMENT_STEPS))
        differences = {f"float64, {AGREEMENT_STEPS} steps": in_float64, **result["differences"]}
        result["differences"] = differences
    row = {
        "machine": machine(arguments.device),
        **{k: v if isinstance(v, int) else str(v) for k, v in vars(arguments).items()},
        **result,
        "summary": summary(result, steps_of_epoch, told.outer.interval),
        "ideal_overhead": 1 + (told.outer.num_terms + 2) / told.outer.interval,
        "interval": told.outer.interval,
    }
    report(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
