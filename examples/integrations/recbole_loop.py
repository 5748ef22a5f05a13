"""DeepFM of RecBole on ratings of which 40 % of the users rate by coin flip.

    pip install '.[recbole]'
    python examples/integrations/recbole_loop.py

A weight per user is learned in the first two epochs, for the dev rows of a panel of users, and then
used in a new training. The data is generated: who rates by coin flip serves to judge the weights of
users who are not on the panel, and is not used to learn them.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.context_aware_recommender import DeepFM
from recbole.trainer import Trainer
from recbole.utils import init_seed

import reweight
from reweight.integrations.recbole import FixedWeightTrainer, ReweightTrainer

USERS, ITEMS, TASTES = 300, 200, 2
TRAIN, DEV, TEST = 50, 30, 20  # ratings per user
FLIPPING = 0.4  # of the users
PANEL = 0.3  # of the other users: those whose ratings are known to be good, and give the dev rows
EPOCHS = 14
KEPT = 0.6  # of the users, those with the largest weights


def write_ratings(folder: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Write atomic files of RecBole, with and without the dev rows among the train rows.

    Returns:
        ``[USERS]`` bool, who rates by coin flip, and who is on the panel.
    """
    random = np.random.default_rng(seed)
    user, item = (random.normal(size=(count, TASTES)) for count in (USERS, ITEMS))
    flips = random.random(USERS) < FLIPPING
    panel = ~flips & (random.random(USERS) < PANEL)
    taste = user @ item.T + 1.5 * random.normal(size=ITEMS)
    chance = np.where(flips[:, None], 0.5, 1 / (1 + np.exp(-taste)))
    likes = random.random(chance.shape) < chance
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for u in range(USERS):
        shown = random.permutation(ITEMS)[: TRAIN + DEV + TEST]
        for rank, i in enumerate(shown):
            part = "train" if rank < TRAIN else "valid" if rank < TRAIN + DEV else "test"
            # Dev rows are like test rows, of users who rate by taste: nobody can predict a coin.
            if part == "train" or (panel[u] if part == "valid" else not flips[u]):
                parts[part].append(f"{u}\t{i}\t{float(likes[u, i])}")
    for name, train in (("apart", parts["train"]), ("pooled", parts["train"] + parts["valid"])):
        (folder / name).mkdir()
        for part, rows in {**parts, "train": train}.items():
            text = "\n".join(["user_id:token\titem_id:token\tlabel:float", *rows])
            (folder / name / f"{name}.{part}.inter").write_text(text)
    return flips, panel


class Data:
    """The loaders of a data set, and models for it."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        settings = {
            "data_path": str(folder),
            "checkpoint_dir": str(folder / "saved"),
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id", "label"]},
            "train_neg_sample_args": None,
            "eval_args": {"mode": "labeled", "order": "RO", "group_by": None},
            "metrics": ["AUC"],
            "valid_metric": "AUC",
            "use_gpu": False,
            "epochs": EPOCHS,
            "learning_rate": 1e-2,
            "train_batch_size": 256,
            "embedding_size": 8,
            "mlp_hidden_size": [32],
            "dropout_prob": 0.0,
            "weight_decay": 1e-4,
            "seed": seed,
        }
        self.config, self.seed = Config("DeepFM", name, config_dict=settings), seed
        logging.getLogger().setLevel(logging.ERROR)
        self.train, self.dev, self.test = data_preparation(self.config, create_dataset(self.config))

    def model(self) -> Any:
        """A new model, the same at each call, for the same order of batches."""
        init_seed(self.seed, True)
        self.train.generator.manual_seed(self.seed)  # it would go on from the last training
        return DeepFM(self.config, self.train.dataset)

    def numbers(self) -> torch.Tensor:
        """RecBole's number of each user, less 1, since RecBole's 0 is padding."""
        token = self.train.dataset.token2id
        return torch.tensor([int(token("user_id", str(user))) - 1 for user in range(USERS)])

    def fixed(self, weights: np.ndarray) -> FixedWeightTrainer:
        """A trainer with one weight per user, of mean 1 over the train rows."""
        table = torch.zeros(USERS)
        table[self.numbers()] = torch.as_tensor(weights, dtype=torch.float32)
        table /= table[group(self.train.dataset.inter_feat)].mean()
        return FixedWeightTrainer(self.config, self.model(), lambda rows: table[group(rows)])

    def auc(self, trainer: Any) -> float:
        """Train and return the AUC on test rows, at the last epoch."""
        trainer.fit(self.train, saved=False, verbose=False)
        return float(trainer.evaluate(self.test, load_best_model=False)["auc"])


def group(rows: Any) -> torch.Tensor:
    """The group of each row: its user. RecBole's number 0 is padding and gets no group."""
    users: torch.Tensor = rows["user_id"] - 1
    return users


def separation(weights: np.ndarray, flips: np.ndarray) -> float:
    """How often a user who rates by taste has a larger weight than one who does not."""
    return float((weights[~flips][:, None] > weights[flips][None]).mean())


def results(seed: int) -> dict[str, tuple[float, float | None]]:
    """AUC on test rows of each way to train, and of the weights where there are any."""
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)  # RecBole writes its logs here
        flips, panel = write_ratings(Path(made), seed)
        apart, pooled = (Data(name, Path(made), seed) for name in ("apart", "pooled"))
        weighter = reweight.GroupWeighter(USERS)
        trainer = ReweightTrainer(
            apart.config,
            apart.model(),
            weighter,
            apart.dev.dataset.inter_feat,  # all dev rows in each outer step
            inputs=group,
            stop_epoch=2,
            outer_lr=0.02,
            hypergradient=reweight.ImplicitHypergradient(reweight.Neumann(num_terms=30)),
        )
        searched = apart.auc(trainer)
        learned = weighter.table().detach()[apart.numbers()].numpy()
        judged = separation(learned[~panel], flips[~panel])
        best = learned >= np.quantile(learned, 1 - KEPT)
        return {
            "plain": (apart.auc(Trainer(apart.config, apart.model())), None),
            "both together": (pooled.auc(Trainer(pooled.config, pooled.model())), None),
            "learned weights": (searched, judged),
            "learned, retrained": (apart.auc(apart.fixed(learned)), judged),
            "learned, retrained on both": (pooled.auc(pooled.fixed(learned)), judged),
            "best users, retrained on both": (pooled.auc(pooled.fixed(best)), judged),
            "oracle": (apart.auc(apart.fixed(~flips)), 1.0),
            "oracle on both": (pooled.auc(pooled.fixed(~flips)), 1.0),
        }


def main() -> None:
    """Print the table of all seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    seeds = parser.parse_args().seeds
    warnings.filterwarnings("ignore", category=FutureWarning)  # RecBole's own
    runs = [results(seed) for seed in seeds]
    print("| training | test AUC | over both together | AUC of the weights |")
    print("| --- | ---: | ---: | ---: |")
    baseline = np.array([run["both together"][0] for run in runs])
    for way in runs[0]:
        auc = np.array([run[way][0] for run in runs])
        separations = [found for run in runs if (found := run[way][1]) is not None]
        judged = f"{np.mean(separations):.2f}" if separations else ""
        over = auc - baseline
        error = over.std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else np.nan
        print(f"| {way} | {auc.mean():.4f} | {over.mean():+.4f} ± {error:.4f} | {judged} |")


if __name__ == "__main__":
    main()
