"""RecBole's own models under ``reweight.integrations.recbole``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reweight

pytest.importorskip("recbole")

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

from reweight.integrations.recbole import FixedWeightTrainer, ReweightTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")

SMALL = {
    "embedding_size": 4,
    "mf_embedding_size": 4,
    "mlp_embedding_size": 4,
    "mlp_hidden_size": [8],
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "n_heads": 1,
    "dropout_prob": 0.1,
}
LABELLED = {
    "train_neg_sample_args": None,
    "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "labeled"},
    "metrics": ["AUC"],
    "valid_metric": "AUC",
    "threshold": {"rating": 3},
}
RANKED = {"eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "mode": "full"}}
LATEST = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BPR": ("BPR", RANKED),
    "LightGCN": ("LightGCN", RANKED),
    "NeuMF": ("NeuMF", RANKED),
    "SASRec": ("SASRec", {**LATEST, "train_neg_sample_args": None}),
    "SASRec-BPR": ("SASRec", {**LATEST, "loss_type": "BPR"}),
    "DeepFM": ("DeepFM", LABELLED),
}


def slow(name: str) -> Any:
    """A case of more than a few seconds."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole writes checkpoints and logs where it is called."""
    import scipy.sparse

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(12):
        for time, item in enumerate(random.permutation(15)[:8]):
            lines.append(f"u{user}\ti{item}\t{random.integers(1, 6)}\t{time}")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.inter").write_text("\n".join(lines))
    if not hasattr(scipy.sparse.dok_matrix, "_update"):  # RecBole's graphs need scipy below 1.13
        monkeypatch.setattr(
            scipy.sparse.dok_matrix,
            "_update",
            lambda self, entries: self._dict.update(entries),
            raising=False,
        )


@pytest.fixture
def in_float64() -> Iterator[None]:
    """RecBole's penalties are summed in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings_of(own: dict[str, Any]) -> dict[str, Any]:
    """RecBole's settings for the files that every test finds in its folder."""
    return {
        "data_path": ".",
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "use_gpu": False,
        "epochs": 2,
        "train_batch_size": 32,
        "checkpoint_dir": "saved",
        "topk": [3],
        **({} if "valid_metric" in own else {"valid_metric": "MRR@3"}),
        **SMALL,
        **own,
    }


class Case:
    """A model of RecBole, its configuration and its loaders."""

    def __init__(self, case: str, **settings: Any) -> None:
        name, own = MODELS[case]
        self.config = Config(name, "tiny", config_dict={**settings_of(own), **settings})
        logging.getLogger().setLevel(logging.ERROR)
        init_seed(0, True)
        self.train, self.valid, self.test = data_preparation(
            self.config, create_dataset(self.config)
        )
        self.model = get_model(name)(self.config, self.train.dataset)

    def learner(self, **settings: Any) -> ReweightTrainer:
        weighter = reweight.GroupWeighter(self.train.dataset.user_num)
        settings = {"inputs": "user_id", "outer_lr": 0.1, **settings}
        return ReweightTrainer(self.config, self.model, weighter, self.valid, **settings)


def batch_of(case: Case) -> Interaction:
    init_seed(1, True)
    batch: Interaction = next(iter(case.train))
    return batch


def widened(batch: Interaction) -> Interaction:
    """Without float32 labels, from which BCEWithLogitsLoss makes float32 losses."""
    fields = batch.interaction.items()
    return Interaction({k: x.double() if x.is_floating_point() else x for k, x in fields})


def exact(model: Any) -> Any:
    """The model in float64, without dropout."""
    model = model.double().eval()
    if hasattr(model, "norm_adj_matrix"):  # a plain attribute, which double() passes over
        model.norm_adj_matrix = model.norm_adj_matrix.double()
    return model


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_sample_is_that_of_a_batch_of_one(name: str) -> None:
    case = Case(name, reg_weight=0.0)
    model, batch = exact(case.model), widened(batch_of(case))
    losses = case.learner().losses(model, batch).weighted
    alone = torch.stack([model.calculate_loss(batch[[i]]).reshape(()) for i in range(len(batch))])
    assert losses.dtype == torch.float64
    # 1e-12: the layers of one row and of many add in another order.
    torch.testing.assert_close(losses, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("require_pow", [False, True])
def test_a_penalty_gets_no_weights(require_pow: bool) -> None:
    case = Case("LightGCN", reg_weight=0.3, require_pow=require_pow)
    model, batch = exact(case.model), batch_of(case)
    losses = case.learner().losses(model, batch)
    tables = (model.user_embedding, model.item_embedding, model.item_embedding)
    fields = ("user_id", "item_id", "neg_item_id")
    rows = [table(batch[field]) for table, field in zip(tables, fields, strict=True)]
    norms = sum(row.square().sum() / 2 if require_pow else row.norm() for row in rows)
    torch.testing.assert_close(losses.fixed.reshape(()), 0.3 * norms / len(batch))


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_one_train_as_recbole_does(name: str) -> None:
    trained = []
    for make in (
        lambda case: Trainer(case.config, case.model),
        lambda case: FixedWeightTrainer(
            case.config, case.model, lambda rows: torch.ones(len(rows))
        ),
    ):
        case = Case(name, learner="sgd", learning_rate=0.1)
        make(case).fit(case.train, saved=False, verbose=False)
        trained.append(case.model.state_dict())
    for key, value in trained[0].items():
        # 1e-5: float32, with the terms of the loss added in another order.
        torch.testing.assert_close(trained[1][key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_outer_steps_move_the_weights_of_users_in_the_batches(name: str) -> None:
    case = Case(name)
    trainer = case.learner()
    trainer.fit(case.train, case.valid, verbose=False)
    weights = trainer.rw.weighter.table()[1:]  # without RecBole's padding
    assert weights.isfinite().all() and len(weights.unique()) == len(weights)
    assert set(trainer.evaluate(case.test))  # with the best model, which RecBole can't load


@pytest.mark.parametrize("name", ["BPR", "DeepFM", slow("SASRec")])
def test_a_resumed_run_continues_bit_for_bit(name: str) -> None:
    whole = Case(name, epochs=2)
    learner = whole.learner()
    learner.fit(whole.train, verbose=False)

    half = Case(name, epochs=1)
    first = half.learner()
    first.fit(half.train, verbose=False)
    again = Case(name, epochs=2)
    second = again.learner()
    second.resume_checkpoint(first.saved_model_file)
    assert second.start_epoch == 1
    init_seed(99, True)  # what happens in between must not matter
    second.fit(again.train, verbose=False)
    for kind in (lambda t: t.model, lambda t: t.rw.weighter):
        states = kind(learner).state_dict(), kind(second).state_dict()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["BPR", slow("LightGCN"), slow("DeepFM")])
def test_hypergradients_are_those_of_a_minimum_solved_again(name: str) -> None:
    case = Case(name, train_batch_size=16, weight_decay=0.05, dropout_prob=0.0)
    solver = reweight.ConjugateGradient(max_steps=100, rtol=1e-9)
    trainer = case.learner(hypergradient=reweight.ImplicitHypergradient(solver, damping=0.1))
    case.model.eval()
    batch = batch_of(case)
    dev = next(iter(trainer._dev))
    # Five seconds of work; the default limit of a minute ends it on a machine that others use too.
    report = reweight.check_hypergradient(trainer.rw, batch[list(range(8))], dev, max_seconds=600)
    assert report.ok, str(report)
    assert (report.hessian_share or 0) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda own, rows: own.sigmoid(own.predict(rows)).mean(),  # no loss module
        lambda own, rows: own.usual(rows).mean(),  # reduced again
        lambda own, rows: own.usual(rows).square(),  # not a sum of losses
        lambda own, rows: own.usual(rows[list(range(4))]),  # other rows
        lambda own, rows: own.usual(rows) + own.usual(rows[list(range(4))]),  # other rows too
    ],
    ids=["in-line", "reduced", "squared", "fewer rows", "fewer rows beside all"],
)
def test_a_loss_that_is_not_a_sum_over_rows_is_refused_by_name(change: Any) -> None:
    case = Case("DeepFM")
    case.model.usual = case.model.calculate_loss
    case.model.calculate_loss = lambda rows: change(case.model, rows)
    with pytest.raises(ValueError, match=r"DeepFM.*losses\(interaction\)"):
        case.learner().fit(case.train, verbose=False)


def test_the_models_own_losses_are_used() -> None:
    case = Case("DeepFM")
    each = torch.nn.BCEWithLogitsLoss(reduction="none")
    case.model.losses = lambda rows: reweight.Losses(each(case.model(rows), rows["label"]))
    case.model.calculate_loss = lambda rows: case.model.losses(rows).weighted.mean()
    trainer = case.learner()
    trainer.fit(case.train, verbose=False)
    assert trainer.last_step is not None


def test_a_term_of_the_models_own_stays_fixed_and_is_named() -> None:
    case = Case("DeepFM")
    usual = case.model.calculate_loss
    penalty = lambda: case.model.deep_predict_layer.weight.square().sum()  # noqa: E731
    case.model.calculate_loss = lambda rows: usual(rows) + 0.5 * penalty()
    trainer = case.learner()
    with pytest.warns(UserWarning, match="DeepFM.*adds a term"):
        trainer.fit(case.train, verbose=False)
    losses = trainer.losses(case.model, batch_of(case))
    torch.testing.assert_close(losses.fixed, 0.5 * penalty())


def test_a_model_with_a_trainer_of_its_own_is_refused() -> None:
    case = Case("BPR")
    case.config["model"] = "NCL"
    with pytest.raises(ValueError, match="NCL with NCLTrainer"):
        case.learner()


def test_several_processes_of_recbole_are_refused() -> None:
    case = Case("BPR")
    case.config["single_spec"] = False
    with pytest.raises(ValueError, match="RecBole runs on several processes"):
        case.learner()


def test_outer_steps_are_made_in_their_epochs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("DeepFM", epochs=4)
    trainer = case.learner(warmup_epochs=1, stop_epoch=3, every=2)
    steps = []
    usual = trainer.rw.outer_backward
    monkeypatch.setattr(
        trainer.rw, "outer_backward", lambda *a: steps.append(trainer._epoch) or usual(*a)
    )
    trainer.fit(case.train, verbose=False)
    assert len(case.train) == 3
    assert steps == [1, 1, 2, 2]  # the first and the third batch of each


def test_one_interaction_serves_every_outer_step() -> None:
    case = Case("DeepFM")
    rows = case.valid.dataset.inter_feat
    weighter = reweight.GroupWeighter(case.train.dataset.user_num)
    trainer = ReweightTrainer(case.config, case.model, weighter, rows, inputs="user_id")
    trainer.fit(case.train, verbose=False)
    assert trainer.weights(batch_of(case)).shape == (len(batch_of(case)),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_epochs": 2, "stop_epoch": 2}, "stop_epoch=2"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"every": 0}, "every=0"),
    ],
)
def test_epochs_without_a_step_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case("BPR").learner(**settings)


@pytest.mark.parametrize("dev", [3, [], [torch.zeros(3)]])
def test_dev_data_without_interactions_is_refused(dev: Any) -> None:
    case = Case("DeepFM")
    weighter = reweight.GroupWeighter(case.train.dataset.user_num)
    with pytest.raises((TypeError, ValueError), match="dev_data"):
        ReweightTrainer(case.config, case.model, weighter, dev, inputs="user_id").fit(case.train)


def test_a_field_that_is_not_there_is_named_with_those_that_are() -> None:
    case = Case("DeepFM")
    with pytest.raises(ValueError, match=r"inputs='user'.*user_id"):
        case.learner(inputs="user").fit(case.train, verbose=False)


@pytest.mark.parametrize(
    "weights",
    [
        lambda rows: torch.ones(1),
        lambda rows: -torch.ones(len(rows)),
        lambda rows: torch.full((len(rows),), torch.nan),
    ],
    ids=["shape", "negative", "nan"],
)
def test_weights_that_can_not_be_weights_are_refused(weights: Any) -> None:
    case = Case("DeepFM")
    with pytest.raises(ValueError, match="weights returned"):
        FixedWeightTrainer(case.config, case.model, weights).fit(case.train, verbose=False)


def test_a_checkpoint_of_recbole_is_not_taken_for_one_with_weights() -> None:
    case = Case("DeepFM")
    plain = Trainer(case.config, case.model)
    plain.fit(case.train, verbose=False)
    with pytest.raises(ValueError, match="not written by ReweightTrainer"):
        case.learner().resume_checkpoint(plain.saved_model_file)


def test_the_page_runs_as_it_stands() -> None:
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "recbole.md").read_text()
    added, retrained = (
        re.search(rf"^```{kind}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        for kind in ("diff", "python")
    )
    assert added is not None and retrained is not None
    lines = [line[1:] for line in added[1].splitlines() if not line.startswith("-")]
    code = "\n".join([*lines, retrained[1], "trainer.fit(train)"])
    names = {
        **globals(),
        "DeepFM": get_model("DeepFM"),
        "settings": settings_of(LABELLED),
        "Config": lambda model, data, config_dict: Config(model, "tiny", config_dict=config_dict),
    }
    exec(code, names)
    assert isinstance(names["trainer"], FixedWeightTrainer)
    assert names["table"][1:].std() > 0
