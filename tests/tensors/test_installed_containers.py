"""Containers of other libraries, where they are installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reweight import _tensors as trees


def leaf() -> Tensor:
    return torch.ones(4, 3, requires_grad=True)


def detached(value: Any) -> Any:
    mapped = trees.map_tensors(Tensor.detach, value)
    assert type(mapped) is type(value)
    assert not any(x.requires_grad for x in trees.tensors_in(mapped))
    assert any(x.requires_grad for x in trees.tensors_in(value))
    return mapped


@pytest.mark.parametrize("locked", [False, True])
def test_a_tensordict_keeps_its_batch_size_and_its_lock(locked: bool) -> None:
    tensordict = pytest.importorskip("tensordict")
    value = tensordict.TensorDict({"x": leaf(), "part": {"y": leaf()}}, batch_size=[4])
    mapped = detached(value.lock_() if locked else value)
    assert mapped.batch_size == (4,) and len(mapped) == 4 and mapped.is_locked == locked
    assert not mapped[:2]["x"].requires_grad and not mapped["part", "y"].requires_grad
    mapped.unlock_()["z"] = torch.zeros(4)
    assert set(value.keys()) == {"x", "part"} and value.is_locked == locked


def test_an_output_of_a_transformer_has_the_same_items_and_attributes() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    mapped = detached(outputs.BaseModelOutput(last_hidden_state=leaf(), hidden_states=(leaf(),)))
    assert mapped.last_hidden_state is mapped["last_hidden_state"] is mapped[0]
    assert mapped.hidden_states is mapped["hidden_states"] and mapped.attentions is None


def test_an_encoding_of_a_tokenizer_stays_one() -> None:
    transformers = pytest.importorskip("transformers")
    mapped = detached(transformers.BatchEncoding({"x": leaf()}, n_sequences=2))
    assert mapped.x is mapped["x"] and mapped.n_sequences == 2


def test_a_graph_and_a_batch_of_graphs_own_their_stores() -> None:
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    graph = detached(data.Data(x=leaf(), edge_index=edges))
    assert graph.x is graph["x"] and graph._store._parent() is graph and graph.num_nodes == 4
    batch = detached(data.Batch.from_data_list([graph.clone(), data.Data(leaf(), edges)]))
    assert batch.num_graphs == 2 and not batch[1].x.requires_grad


def test_frozen_attrs_classes_are_copied() -> None:
    attrs = pytest.importorskip("attrs")
    cls = attrs.make_class("Point", {"x": attrs.field(), "n": attrs.field(default=3)}, frozen=True)
    mapped = detached(cls(leaf()))
    assert mapped.n == 3


def test_frozen_pydantic_models_are_copied_with_their_private_attributes() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel, frozen=True, arbitrary_types_allowed=True):
        x: Any
        _kept: Any = pydantic.PrivateAttr(default_factory=leaf)

    mapped = detached(Model(x=leaf()))
    assert mapped.model_fields_set == {"x"} and not mapped._kept.requires_grad


def test_structs_that_are_written_in_c_are_copied() -> None:
    msgspec = pytest.importorskip("msgspec")
    cls = msgspec.defstruct("Point", ["x", ("n", int, 3)], frozen=True)
    assert detached(cls(leaf())).n == 3


def test_mappings_that_are_written_in_c_are_made_anew() -> None:
    immutables = pytest.importorskip("immutables")
    assert detached(immutables.Map(x=leaf(), n=3))["n"] == 3
