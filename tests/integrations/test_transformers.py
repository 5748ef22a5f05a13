"""The Trainer of transformers with learned weights, against the real packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reweight

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("trl")
import transformers
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from reweight.integrations.transformers import (
    OuterArguments,
    ReweightTrainer,
    causal_lm_losses,
    causal_lm_token_losses,
    sequence_classification_losses,
)

VOCABULARY = 17
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """Some tests need float64 models: the default type is put back."""
    yield
    torch.set_default_dtype(torch.float32)


def gpt2(dropout: float = 0.0, **settings: Any) -> Any:
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    kind = settings.pop("kind", GPT2LMHeadModel)
    return kind(GPT2Config(**sizes, **tokens, **rates, **settings))


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def llama_with_lora() -> Any:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(llama(), adapters)


def texts(number: int, *, sources: int = 2, seed: int = 0, ragged: bool = False) -> list[Row]:
    """Source 0 counts upwards, every other one is random."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(high: int, size: tuple[int, ...] = ()) -> Tensor:
        return torch.randint(high, size, generator=generator)

    rows = []
    for index in range(number):
        source = index % sources
        length = 4 + int(drawn(8)) if ragged else 12
        ids = (drawn(VOCABULARY) + torch.arange(12)) % VOCABULARY
        if source:
            ids = drawn(VOCABULARY, (12,))
        labels = torch.where(torch.arange(12) < length, ids, -100)
        rows.append({"input_ids": ids, "labels": labels, "source": source})
    return rows


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    usual = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "seed": 0,
    }
    return TrainingArguments(**{**usual, **settings})


def trainer(folder: Path, model: Any = None, **settings: Any) -> ReweightTrainer:
    """One that learns the weights of two sources; ``settings`` of the trainer and its arguments."""
    own = {
        "weighter": reweight.GroupWeighter(2),
        "train_dataset": texts(64),
        "dev_dataset": texts(16, sources=1, seed=1),
        "group_column": "source",
        "outer_args": OuterArguments(every=1, lr=5e-2),
    }
    names = (*own, "losses", "weight_column", "hypergradient", "eval_dataset", "callbacks", "cls")
    own |= {name: settings.pop(name) for name in names if name in settings}
    kind = own.pop("cls", ReweightTrainer)
    return kind(model if model is not None else gpt2(), arguments(folder, **settings), **own)


def logged(of: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in of.state.log_history if key in entry]


def group_weights(weighter: reweight.GroupWeighter) -> Tensor:
    return weighter.table().detach()


# -- the losses ------------------------------------------------------------------------------------


def batch_of(rows: list[Row]) -> dict[str, Tensor]:
    keys = [key for key in rows[0] if key != "source"]
    return {key: torch.stack([row[key] for row in rows]) for key in keys}


@pytest.mark.parametrize("losses", [causal_lm_losses, causal_lm_token_losses])
@pytest.mark.parametrize("model", [gpt2, llama_with_lora])
def test_the_mean_of_the_losses_is_the_models_own_loss(losses: Any, model: Any) -> None:
    batch = batch_of(texts(8, ragged=True))
    made = model()
    own = made(**batch).loss
    # Both are sums of a hundred terms in float32, in another order.
    torch.testing.assert_close(losses(made, batch).weighted.mean(), own, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 1])),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ({"num_labels": 2}, torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])),
    ],
    ids=["classes", "values", "several labels"],
)
def test_the_mean_of_the_losses_of_classes_is_the_models_own_loss(
    settings: Any, labels: Tensor
) -> None:
    model = gpt2(kind=GPT2ForSequenceClassification, **settings)
    batch = {"input_ids": batch_of(texts(4))["input_ids"], "labels": labels}
    losses = sequence_classification_losses(model, batch).weighted
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), model(**batch).loss, rtol=1e-6, atol=0)


def test_each_token_has_the_group_of_its_sequence() -> None:
    rows = texts(2, ragged=True)
    losses = causal_lm_token_losses(gpt2(), batch_of(rows), torch.tensor([7, 9]))
    first, second = (int((row["labels"][1:] != -100).sum()) for row in rows)
    assert losses.inputs.tolist() == [7] * first + [9] * second
    assert losses.weighted.shape == losses.inputs.shape


# -- training --------------------------------------------------------------------------------------


def test_the_source_like_the_dev_set_gets_the_greater_weight_and_it_is_logged(
    tmp_path: Path,
) -> None:
    made = trainer(tmp_path, max_steps=30)
    made.train()
    learned, other = group_weights(made.weighter).tolist()
    assert learned > 1.2 * other
    assert logged(made, "weight_0")[-1] == pytest.approx(learned)
    assert logged(made, "weight_1")[-1] == pytest.approx(other)
    assert len(logged(made, "weight_mean")) == 30
    assert not logged(made, "hypergradient_residual")  # a first-order step solves nothing


@pytest.mark.parametrize("losses", [causal_lm_losses, causal_lm_token_losses])
def test_weights_of_one_leave_the_training_as_it_was(tmp_path: Path, losses: Any) -> None:
    # Of GPT-2, the Trainer divides by the number of labels, one too many for each sequence.
    data = texts(64, ragged=True)
    plain = Trainer(llama(), arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=data)
    plain.train()
    never = OuterArguments(warmup_steps=1000)
    settings = {"train_dataset": data, "gradient_accumulation_steps": 2, "losses": losses}
    made = trainer(tmp_path, llama(), outer_args=never, **settings)
    made.train()
    # The sums of the losses have another order, and Adam magnifies the rounding of float32.
    torch.testing.assert_close(logged(made, "loss"), logged(plain, "loss"), rtol=1e-4, atol=0)


@pytest.mark.parametrize("losses", [causal_lm_losses, causal_lm_token_losses])
@pytest.mark.parametrize("model", [gpt2, llama_with_lora])
def test_four_micro_batches_are_one_batch_of_four_times_the_size(
    tmp_path: Path, losses: Any, model: Any
) -> None:
    torch.set_default_dtype(torch.float64)
    results = []
    for size, steps in ((16, 1), (4, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        data = texts(64, ragged=True)
        made = trainer(tmp_path, model(), losses=losses, train_dataset=data, **settings)
        made.train()
        results.append((made.model.state_dict(), made.weighter.state_dict()))
    assert not torch.equal(results[0][1]["raw"], torch.zeros(2, dtype=torch.float64))
    # The batches are added up in another order. In float64 what is left is its rounding, which
    # Adam magnifies where gradients are near zero, and the float32 of Llama's norms and rotations.
    for one, four in zip(*results, strict=True):
        torch.testing.assert_close(four, one, rtol=1e-6, atol=1e-6)


class Stop(TrainerCallback):
    """Stops after the third step, as an interruption would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize(
    "hypergradient",
    [None, reweight.ImplicitHypergradient()],
    ids=["first order", "default of wrap"],
)
def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path: Path, hypergradient: Any) -> None:
    def made(**settings: Any) -> ReweightTrainer:
        steps = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7}
        return trainer(
            tmp_path, gpt2(0.1), hypergradient=hypergradient, train_dataset=texts(40),
            dev_dataset=texts(20, sources=1, seed=1), **steps, **settings,
        )  # fmt: skip

    whole = made()
    whole.train()
    made(callbacks=[Stop()]).train()
    resumed = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for a, b in ((whole.model, resumed.model), (whole.weighter, resumed.weighter)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    assert logged(whole, "loss")[3:] == logged(resumed, "loss")[-4:]


def test_a_checkpoint_without_a_weighter_is_refused(tmp_path: Path) -> None:
    plain = Trainer(
        gpt2(), arguments(tmp_path, save_strategy="steps", save_steps=3), train_dataset=texts(64)
    )
    plain.train()
    with pytest.raises(FileNotFoundError, match="without a weighter"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_evaluation_and_prediction_do_not_show_the_column_to_the_model(tmp_path: Path) -> None:
    data = texts(16, seed=2)
    made = trainer(tmp_path, llama(), eval_dataset=data, max_steps=2)
    made.train()
    batch = batch_of(data)
    with torch.no_grad():
        own = made.model.eval()(**batch).loss
    # The Trainer averages the losses of two batches.
    assert made.evaluate()["eval_loss"] == pytest.approx(float(own), rel=1e-5)
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in data]
    assert made.predict(unlabelled).predictions.shape[0] == 16


def test_a_column_of_a_data_set_of_datasets_is_kept_and_others_are_dropped(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{**row, "url": "somewhere"} for row in texts(32)]
    data = Dataset.from_list([{**r, "labels": r["labels"].tolist()} for r in rows])
    made = trainer(tmp_path, train_dataset=data, dev_dataset=data, max_steps=2)
    made.train()
    assert not torch.equal(group_weights(made.weighter), torch.ones(2))


def test_outer_steps_are_made_without_the_autocast_of_the_trainer(tmp_path: Path) -> None:
    model, types = gpt2(), []
    layer = model.transformer.h[0].mlp.c_fc
    layer.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    made = trainer(tmp_path, model, bf16=True, max_steps=1)
    made.train()
    inner = types.count(torch.bfloat16)
    # The training step, and the two passes of the first one that compare losses.
    assert inner == 3 and len(types) > inner
    made.model(**batch_of(texts(2)))
    assert types[-1] == torch.bfloat16  # it is put back


def test_the_residual_of_a_solver_is_logged(tmp_path: Path) -> None:
    solver = reweight.ImplicitHypergradient(reweight.ConjugateGradient(max_steps=2), damping=1.0)
    made = trainer(tmp_path, hypergradient=solver, max_steps=1)
    made.train()
    assert len(logged(made, "hypergradient_residual")) == 1


def test_tensorboard_gets_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer(tmp_path, report_to=["tensorboard"], max_steps=2).train()
    (file,) = (tmp_path / "logs").rglob("events*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert {"train/weight_mean", "train/weight_0", "train/weight_1"} <= set(
        events.Tags()["scalars"]
    )


def test_known_weights_are_used_as_they_are(tmp_path: Path) -> None:
    """With weights of 2 and 0, the training is that on the first half of each batch."""
    halves = {"weighter": None, "dev_dataset": None, "group_column": None, "max_steps": 1}
    rows = [{**row, "weight": 2.0 * (row["source"] == 0)} for row in texts(16)]
    weighted = trainer(
        tmp_path,
        train_dataset=rows,
        weight_column="weight",
        per_device_train_batch_size=16,
        **halves,
    )
    weighted.train()
    plain = Trainer(
        gpt2(), arguments(tmp_path, max_steps=1), train_dataset=[r for r in rows if r["weight"]]
    )
    plain.train()
    for name, value in plain.model.state_dict().items():
        # The same sums in another order; Adam's first step magnifies the rounding of gradients.
        torch.testing.assert_close(weighted.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"gradient_checkpointing": True},
    ],
    ids=["compiled", "gradient checkpointing"],
)
def test_what_is_learned_does_not_depend_on_how_passes_are_made(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    learned = []
    for each in ({}, settings):
        made = trainer(tmp_path, max_steps=3, **each)
        made.train()
        learned.append(group_weights(made.weighter))
    # Derivatives of losses, by forward mode or by differences, in float32; Adam's steps of 0.05
    # depend on their ratios.
    torch.testing.assert_close(learned[1], learned[0], rtol=1e-3, atol=0)


def test_the_trainer_of_trl_learns_weights_by_the_same_class(tmp_path: Path) -> None:
    from datasets import Dataset

    class ReweightSFTTrainer(ReweightTrainer, SFTTrainer):
        pass

    def data(number: int, **settings: int) -> Dataset:
        rows = texts(number, **settings)
        return Dataset.from_list([{**r, "input_ids": r["input_ids"].tolist()} for r in rows])

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_words(), eos_token="w0", pad_token="w0"
    )
    usual = arguments(tmp_path).to_dict()
    names = (
        "output_dir",
        "per_device_train_batch_size",
        "max_steps",
        "learning_rate",
        "report_to",
        "disable_tqdm",
        "save_strategy",
        "logging_steps",
        "use_cpu",
        "seed",
    )
    config = SFTConfig(
        **{n: usual[n] for n in names} | {"max_steps": 30},
        max_length=16,
        gradient_accumulation_steps=2,
        bf16=False,
    )
    sentences = [
        {"text": " ".join(f"w{int(i)}" for i in row["input_ids"]), "source": row["source"]}
        for row in texts(64)
    ]
    dev = [{"text": one["text"]} for one in sentences if not one["source"]]
    made = ReweightSFTTrainer(
        gpt2(),
        config,
        train_dataset=Dataset.from_list(sentences),
        processing_class=tokenizer,
        eval_dataset={"dev": Dataset.from_list(dev)},
        dev_dataset="dev",
        group_column="source",
        weighter=reweight.GroupWeighter(2),
        outer_args=OuterArguments(every=1, lr=5e-2),
    )
    made.train()
    made.evaluate()
    learned, other = group_weights(made.weighter).tolist()
    assert learned > 1.2 * other


def _words() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


# -- what it refuses -------------------------------------------------------------------------------


def test_a_loss_that_the_model_adds_to_is_noticed(tmp_path: Path) -> None:
    """Mixture-of-experts models add a term that balances the experts."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        router_aux_loss_coef=0.1,
        output_router_logits=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with pytest.raises(ValueError, match=r"losses=\(model, batch, groups\)"):
        trainer(tmp_path, MixtralForCausalLM(config)).train()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weighter": None}, "weight_column"),
        ({"weight_column": "weight"}, "weighter"),
        ({"dev_dataset": None}, "dev_dataset"),
        ({"group_column": None}, "group_column"),
        ({"dev_dataset": "dev"}, "eval_dataset"),
        ({"dev_dataset": []}, "dev_dataset is empty"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_arguments_that_it_cannot_honour_are_named(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        trainer(tmp_path, **settings)


def test_a_dev_set_that_became_smaller_is_named_on_resuming(tmp_path: Path) -> None:
    saved = {"save_strategy": "steps", "save_steps": 3, "per_device_eval_batch_size": 4}
    trainer(tmp_path, max_steps=3, **saved).train()  # three of the four dev batches
    smaller = trainer(tmp_path, dev_dataset=texts(8, sources=1, seed=1), **saved)
    with pytest.raises(ValueError, match="the dev data have 2 batches"):
        smaller.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_dev_set_that_is_a_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dev_dataset is of type list_iterator"):
        trainer(tmp_path, dev_dataset=iter(texts(4)))


@pytest.mark.parametrize("settings", [{"every": 0}, {"warmup_steps": -1}, {"lr": 0.0}])
def test_outer_arguments_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        OuterArguments(**settings)


def test_several_gpus_in_a_process_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(NotImplementedError, match="torchrun.*CUDA_VISIBLE_DEVICES"):
        trainer(tmp_path)


@pytest.mark.parametrize(
    ("weighter", "lr", "used"),
    [
        (reweight.GroupWeighter(2), None, 5e-2),
        (reweight.TableWeighter(64), None, 5e-2),
        (reweight.LossWeighter(4), None, 1e-3),
        (reweight.LossWeighter(4), 3e-3, 3e-3),
    ],
    ids=["groups", "samples", "losses", "stated"],
)
def test_the_learning_rate_is_the_one_that_suits_the_weighter(
    tmp_path: Path, weighter: Any, lr: float | None, used: float
) -> None:
    made = trainer(tmp_path, weighter=weighter, outer_args=OuterArguments(lr=lr))
    assert made.outer_optimizer.param_groups[0]["lr"] == used


def test_a_search_of_hyperparameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="hyperparameter_search"):
        trainer(tmp_path).call_model_init(trial=object())


@pytest.mark.parametrize(
    ("row", "error", "named"),
    [
        ({"source": "web"}, TypeError, "class_encode_column"),
        ({"source": 5}, ValueError, "num_groups"),
        ({}, KeyError, "source"),
    ],
    ids=["a name", "out of range", "missing"],
)
def test_a_column_that_holds_no_ids_is_named(
    tmp_path: Path, row: Row, error: type[Exception], named: str
) -> None:
    rows = [{k: v for k, v in one.items() if k != "source"} | row for one in texts(16)]
    with pytest.raises(error, match=named):
        trainer(tmp_path, train_dataset=rows).train()


def test_rows_without_labels_are_named(tmp_path: Path) -> None:
    rows = [{k: v for k, v in one.items() if k != "labels"} for one in texts(16)]
    with pytest.raises(KeyError, match="DataCollatorForLanguageModeling"):
        trainer(tmp_path, train_dataset=rows).train()


def test_own_losses_are_one_per_row_where_micro_batches_are_averaged(tmp_path: Path) -> None:
    def per_token(model: Any, batch: Any, groups: Any) -> Any:
        return causal_lm_token_losses(model, batch, groups)

    trainer(tmp_path, losses=per_token, max_steps=1).train()
    with pytest.raises(ValueError, match="one loss per row"):
        trainer(tmp_path, losses=per_token, gradient_accumulation_steps=2).train()
