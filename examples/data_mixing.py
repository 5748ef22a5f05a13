"""Data mixing for a language model: how much of each source of text should it read?

A small GPT-2 reads bytes. Its sources are docstrings of Python's standard library, of which there
are few, code of the standard library, of which there is plenty, and random characters. The dev set
and the test set are docstrings of other modules. ``GroupWeighter`` learns a weight per source.

    python examples/data_mixing.py [--seeds 3] [--steps 200]

It needs the packages transformers and peft, and about two minutes on one core.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import statistics
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import reweight
from reweight.integrations.transformers import causal_lm_losses

SOURCES = "docstrings", "code", "random"
ROWS = 600, 5000, 5000  # of each source
DEV_ROWS, TEST_ROWS, LENGTH, BATCH = 64, 500, 48, 16
OUTER_LR, EVERY = 5e-2, 5
FIRST_SEED = 100  # the settings were chosen on lower ones
UNIFORM = torch.ones(3) / 3
DOMAIN = torch.tensor([1.0, 0.0, 0.0])
# In thirds, without those of two thirds random characters or more.
THIRDS = (2, 1, 0), (1, 2, 0), (0, 3, 0), (2, 0, 1), (0, 2, 1)  # besides UNIFORM and DOMAIN
STATIC = [torch.tensor(each) / 3 for each in THIRDS]


@dataclass(frozen=True)
class Data:
    """Tables of bytes ``[N, LENGTH]``: one of each source, and two of the domain that counts."""

    sources: tuple[Tensor, ...]
    dev: Tensor
    test: Tensor

    def with_dev(self) -> Data:
        """Train and dev set together: the dev rows join the source of their domain."""
        docstrings, *others = self.sources
        return replace(self, sources=(torch.cat([docstrings, self.dev]), *others))

    def batch(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Rows whose sources are drawn by probabilities ``[3]``, and their sources."""
        source = torch.multinomial(mixture, BATCH, replacement=True)
        drawn = torch.rand(BATCH)
        picked = zip(source.tolist(), drawn.tolist(), strict=True)
        rows = [self.sources[s][int(u * len(self.sources[s]))] for s, u in picked]
        return torch.stack(rows), source


def table(texts: list[str], rows: int) -> Tensor:
    """The first bytes of some texts."""
    joined = " ".join(texts).encode("ascii", "ignore")[: rows * LENGTH]
    return torch.tensor(list(joined)).view(rows, LENGTH)


def make_data(seed: int) -> Data:
    """Train, dev and test docstrings are of different modules."""
    generator = torch.Generator().manual_seed(seed)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    docstrings: list[list[str]] = [[], [], []]  # train, dev, test
    code = []
    for place, index in enumerate(torch.randperm(len(files), generator=generator).tolist()):
        tree = ast.parse(files[index].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    docstrings[place % 3].append(" ".join(text.split()))
                    node.body = node.body[1:] or [ast.Pass()]
        code.append(ast.unparse(tree))
    noise = torch.randint(32, 127, (ROWS[2], LENGTH), generator=generator)
    train, dev, test = docstrings
    sources = table(train, ROWS[0]), table(code, ROWS[1]), noise
    return Data(sources, table(dev, DEV_ROWS), table(test, TEST_ROWS))


def make_model() -> Any:
    """A GPT-2 of 65,000 parameters."""
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": 128}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, bos_token_id=0, eos_token_id=0))


def make_lora(model: Any) -> Any:
    """The model, frozen, with adapters of rank 8."""
    adapters = LoraConfig(r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return get_peft_model(copy.deepcopy(model), adapters)


def losses(model: Any, batch: tuple[Tensor, Tensor]) -> reweight.Losses:
    """One loss per row; the weighter reads the row's source."""
    text, source = batch
    return causal_lm_losses(model, {"input_ids": text, "labels": text}, source)


def outer_loss(model: Any, text: Tensor) -> Tensor:
    """The loss of dev rows, which the weights minimise, in nats per byte."""
    return causal_lm_losses(model, {"input_ids": text, "labels": text}).weighted.mean()


def train(model: Any, data: Data, mixture: Tensor, steps: int, *, learn: bool = False) -> Tensor:
    """Train the model on rows drawn by a mixture; return the learned mixture ``[3]``."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    weighter = reweight.GroupWeighter(len(SOURCES))
    outer_optimizer = torch.optim.Adam(weighter.parameters(), lr=OUTER_LR)
    first_order = reweight.ImplicitHypergradient(reweight.Identity())
    rw = reweight.wrap(model, weighter, losses, outer_loss, optimizer, first_order)
    for step in range(steps):
        batch = data.batch(mixture)
        if learn and step % EVERY == 0:
            dev = data.dev[torch.randint(DEV_ROWS, (BATCH,))]
            outer_optimizer.zero_grad()
            rw.outer_backward(batch, dev)
            outer_optimizer.step()
        loss = rw.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return probabilities(mixture, weighter)


@torch.no_grad()
def probabilities(mixture: Tensor, weighter: reweight.GroupWeighter) -> Tensor:
    """By which sources are to be drawn instead of by a mixture, after its weights were learned.

    Rows then count in the mean as they do with the weights. A source whose share has fallen to less
    than half is left out: a few rows of useless text in each batch still cost much.
    """
    shares = mixture * weighter.table()
    shares = shares / shares.sum()
    kept: Tensor = shares * (shares >= mixture / 2)
    return kept / kept.sum()


@torch.no_grad()
def loss_on(model: Any, text: Tensor) -> float:
    """In nats per byte."""
    return float(outer_loss(model.eval(), text))


class Comparison:
    """Trains, and keeps the test losses of every way, one per seed."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.found: dict[str, list[float]] = {}
        self.mixtures: dict[str, list[Tensor]] = {"all parameters": [], "LoRA": []}
        self.best: list[Tensor] = []  # static mixture of each seed, by the dev loss

    def all_ways(self, seed: int) -> None:
        """Train in all ways."""
        data = make_data(seed)
        both = data.with_dev()
        uniform, _ = self.run("uniform", make_model, data, UNIFORM, seed)
        domain, _ = self.run("dev domain only", make_model, data, DOMAIN, seed)
        self.run("both together", make_model, both, UNIFORM, seed)
        static = [(uniform, UNIFORM), (domain, DOMAIN)]
        static += [(self.trained(make_model, data, each, seed)[0], each) for each in STATIC]
        model, best = min(static, key=lambda pair: loss_on(pair[0], data.dev))
        self.best.append(best)
        self.found.setdefault("best static mixture", []).append(loss_on(model, data.test))
        _, learned = self.run("learned weights", make_model, data, UNIFORM, seed, learn=True)
        self.run("learned, then sampled", make_model, data, learned, seed)
        self.run("learned, sampled, with dev", make_model, both, learned, seed)
        self.mixtures["all parameters"].append(learned)

        def lora() -> Any:
            return make_lora(uniform)

        self.run("LoRA: uniform", lora, data, UNIFORM, seed)
        self.run("LoRA: dev domain only", lora, data, DOMAIN, seed)
        self.run("LoRA: both together", lora, both, UNIFORM, seed)
        _, learned = self.run("LoRA: learned weights", lora, data, UNIFORM, seed, learn=True)
        self.run("LoRA: learned, then sampled", lora, data, learned, seed)
        self.mixtures["LoRA"].append(learned)

    def trained(
        self,
        make: Callable[[], Any],
        data: Data,
        mixture: Tensor,
        seed: int,
        *,
        learn: bool = False,
    ) -> tuple[Any, Tensor]:
        """Train one model; return it and the mixture that it learned."""
        torch.manual_seed(seed)
        model = make()
        return model, train(model, data, mixture, self.steps, learn=learn)

    def run(
        self,
        name: str,
        make: Callable[[], Any],
        data: Data,
        mixture: Tensor,
        seed: int,
        *,
        learn: bool = False,
    ) -> tuple[Any, Tensor]:
        """Train one model, and note its test loss under a name."""
        model, learned = self.trained(make, data, mixture, seed, learn=learn)
        self.found.setdefault(name, []).append(loss_on(model, data.test))
        return model, learned

    def lead(self, better: str, worse: str) -> str:
        """By how much one way is better than another, and whether that is more than noise."""
        pairs = zip(self.found[worse], self.found[better], strict=True)
        mean, error = mean_and_error([b - a for b, a in pairs])
        verdict = "no difference beyond noise"
        if abs(mean) > 2 * error:
            verdict = "better" if mean > 0 else "WORSE"
        return f"  than {worse:<28} {mean:+.3f} ± {error:.3f}   {verdict}"


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error, which is unknown (infinite) for one value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def shown(mixture: Tensor) -> str:
    """A mixture in words."""
    pairs = zip(SOURCES, mixture.tolist(), strict=True)
    return ", ".join(f"{source} {share:.2f}" for source, share in pairs)


def main(arguments: list[str] | None = None) -> None:
    """Compare mixtures."""
    parser = argparse.ArgumentParser(description="Learn how to mix three sources of text.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # for tensors this small, one thread is faster than several
    compare = Comparison(options.steps)
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        compare.all_ways(seed)
        print(f"seed {seed}: done", flush=True)

    print(f"test loss, nats per byte, {options.seeds} seeds of {options.steps} steps")
    for name, values in compare.found.items():
        mean, error = mean_and_error(values)
        print(f"  {name:<28} {mean:.3f} ± {error:.3f}")
    for seed, best in enumerate(compare.best, FIRST_SEED):
        print(f"best static mixture, by dev loss, seed {seed}: {shown(best)}")
    for name, each in compare.mixtures.items():
        print(f"learned, as sampling probabilities ({name}): {shown(torch.stack(each).mean(0))}")
    baselines = "uniform", "dev domain only", "both together", "best static mixture"
    for way, worse in (
        ("learned, then sampled", baselines),
        ("learned, sampled, with dev", baselines),
        ("LoRA: learned, then sampled", [f"LoRA: {each}" for each in baselines[:3]]),
    ):
        print(f"gain of '{way}'")
        for baseline in worse:
            print(compare.lead(way, baseline))


if __name__ == "__main__":
    main()
