"""The layers of a model, read from the graph of its outputs.

Autograd keeps in the node of a linear layer what the layer read, and shows which parameters go into
which node. So no module has to be known, and a parameter that is used twice is seen twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from reweight._curvature.layers import Layer, Linear, LookedUp, PerSample
from reweight._tables import Graph, LookUp, Table
from reweight._tensors import Tree

_ADVICE = (
    "it serves linear layers, embedding tables, biases and layer norms. Use ConjugateGradient(), "
    "or leave the parameter out by inner_params"
)


@dataclass(frozen=True)
class _Use:
    """One operation that takes a parameter.

    Attributes:
        node: the operation.
        kind: how the parameter enters: as the weight of a linear layer, ``[o, i]`` or transposed,
            or as a factor or a summand of each row.
        rows: ``[J, ·]``, what multiplies the parameter; ``None``: ones.
    """

    node: Node
    kind: Literal["linear", "transposed", "row"]
    rows: Tensor | None


def layers_of(
    outputs: Sequence[Tensor], loss: Tensor, params: Tree, tables: Mapping[str, Table]
) -> dict[str, Layer]:
    """The layers through which outputs depend on parameters, by the parameters' names.

    Args:
        outputs: ``[B, ...]`` each, with their graph.
        loss: a function of them; its graph holds theirs.
        params: θ, leaves.
        tables: entries of θ that the outputs read by rows.

    Raises:
        ValueError: a parameter whose layer is not served, or outputs of different lengths.
    """
    lengths = {z.shape[0] if z.ndim else 0 for z in outputs}
    if len(lengths) != 1 or lengths == {0}:
        shapes = ", ".join(str(tuple(z.shape)) for z in outputs)
        raise ValueError(
            f"SampleSpace() needs outputs with one row per sample, [B, ...], and Losses.of has "
            f"outputs of shapes {shapes}: return them in that form, or use ConjugateGradient()"
        )
    (count,) = lengths
    graph = Graph(loss)
    takers = _takers(graph)
    uses = {n: list(_uses(n, p, graph, takers)) for n, p in params.items() if n not in tables}
    nodes = {use.node for found in uses.values() for use in found}
    nodes |= {x.node for table in tables.values() for x, _ in table.look_ups}
    signals = _signals(outputs, list(nodes))
    uses = {name: [use for use in found if use.node in signals] for name, found in uses.items()}
    layers: dict[str, Layer] = {}
    for name, parameter in params.items():
        if name in tables:
            if any(x.node in signals for x, _ in tables[name].look_ups):
                layers[name] = _looked_up(name, tables[name], signals, count)
        elif uses[name]:
            layers[name] = _layer(name, parameter, uses[name], signals, count)
    return layers | _beside(layers, uses)


def _beside(
    layers: Mapping[str, Layer], uses: Mapping[str, Sequence[_Use]]
) -> dict[str, PerSample]:
    """The biases of linear layers, with the names of the weights."""
    single = {name: found[0] for name, found in uses.items() if len(found) == 1}
    weights = {use.node: name for name, use in single.items() if use.kind != "row"}
    return {
        name: dataclasses.replace(layer, beside=weights[single[name].node])
        for name, layer in layers.items()
        if isinstance(layer, PerSample)
        and name in single
        and single[name].rows is None
        and single[name].node in weights
    }


Takers = Mapping[Node, Sequence[tuple[Node, int]]]


def _takers(graph: Graph) -> Takers:
    """For each node the nodes that take it, and at which place."""
    found: dict[Node, list[tuple[Node, int]]] = {}
    for node, inputs in graph.nodes.items():
        for place, taken in enumerate(inputs):
            if taken is not None:
                found.setdefault(taken, []).append((node, place))
    return found


def _uses(name: str, parameter: Tensor, graph: Graph, takers: Takers) -> Iterator[_Use]:
    leaf = graph.leaves.get(id(parameter))
    for node, place in takers.get(leaf, ()) if leaf is not None else ():
        if node.name() == "TBackward0":
            for taker, at in takers[node]:
                yield _product(name, taker, at, "linear")
        elif parameter.ndim == 1:
            yield _row(name, node, place)
        else:
            yield _product(name, node, place, "transposed")


def _product(name: str, node: Any, place: int, kind: Literal["linear", "transposed"]) -> _Use:
    """A parameter as the second factor of a matrix product."""
    operation = node.name(), place
    if operation == ("MmBackward0", 1):
        return _Use(node, kind, node._saved_self.detach())
    if operation == ("AddmmBackward0", 2) and node._saved_alpha == 1:
        return _Use(node, kind, node._saved_mat1.detach())
    raise _not_served(name, node)


def _row(name: str, node: Any, place: int) -> _Use:
    """A parameter that is added to each row, or multiplies it."""
    operation = node.name()
    if operation == "AddmmBackward0" and place == 0 and node._saved_beta == 1:
        return _Use(node, "row", None)
    if operation == "AddBackward0" and (place == 0 or node._saved_alpha == 1):
        return _Use(node, "row", None)
    if operation == "NativeLayerNormBackward0" and len(node._saved_normalized_shape) == 1:
        if place == 2:
            return _Use(node, "row", None)
        centred = node._saved_input - node._saved_result1
        return _Use(node, "row", (centred * node._saved_result2).detach().flatten(0, -2))
    raise _not_served(name, node)


def _not_served(name: str, node: Node) -> ValueError:
    return ValueError(f"SampleSpace() does not serve {name}, which {node.name()} takes: {_ADVICE}")


def _signals(outputs: Sequence[Tensor], nodes: list[Node]) -> dict[Node, Tensor]:
    """The derivatives of the outputs by the results of operations, ``[C, ...]`` each.

    Of all samples in one pass: the result of an operation holds rows, each of one sample.
    Operations on which no output depends are left out.
    """
    if not nodes:
        return {}
    edges: list[Any] = [GradientEdge(node, 0) for node in nodes]
    units = unit_outputs(outputs)
    batched = len(units[0]) > 1
    found = torch.autograd.grad(
        outputs,
        edges,
        units if batched else [unit[0] for unit in units],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return {
        node: signal if batched else signal.unsqueeze(0)
        for node, signal in zip(nodes, found, strict=True)
        if signal is not None
    }


def unit_outputs(outputs: Sequence[Tensor]) -> list[Tensor]:
    """``[C, B, ...]`` for each output: 1 at one of the ``C`` entries of every sample."""
    sizes = [z[0].numel() for z in outputs]
    units = torch.eye(sum(sizes), dtype=outputs[0].dtype, device=outputs[0].device)
    parts = torch.split(units, sizes, 1)
    return [
        part.to(z).unsqueeze(1).expand(-1, len(z), -1).reshape(-1, *z.shape)
        for part, z in zip(parts, outputs, strict=True)
    ]


def _layer(
    name: str,
    parameter: Tensor,
    uses: Sequence[_Use],
    signals: Mapping[Node, Tensor],
    count: int,
) -> Layer:
    kinds = {use.kind for use in uses}
    if len(kinds) > 1:
        raise ValueError(
            f"SampleSpace() does not serve {name}, which is used in two ways, as a weight and its "
            f"transpose: {_ADVICE}"
        )
    pieces = []
    for use in uses:
        signal = signals[use.node]
        if use.kind == "row" and signal.shape[-1:] != parameter.shape:  # it is broadcast
            raise _not_served(name, use.node)
        signal = signal.reshape(len(signal), -1, signal.shape[-1])
        pieces.append((use.rows, signal, _samples(name, signal.shape[1], count, signal.device)))
    if kinds == {"row"}:
        total = torch.zeros((), device=parameter.device, dtype=parameter.dtype)
        for rows, signal, _ in pieces:
            signal = signal if rows is None else signal * rows
            total = total + signal.reshape(len(signal), count, -1, signal.shape[-1]).sum(2)
        return PerSample(total, parameter.shape)
    inputs = torch.cat([rows for rows, _, _ in pieces if rows is not None])
    joined, samples = _joined([(signal, sample) for _, signal, sample in pieces])
    return Linear(joined, samples, count, inputs, kinds == {"transposed"})


def _looked_up(name: str, table: Table, signals: Mapping[Node, Tensor], count: int) -> LookedUp:
    pieces, places = [], []
    for look_up, at in table.look_ups:
        if not isinstance(look_up, LookUp) or not look_up.linear:
            raise ValueError(
                f"SampleSpace() does not serve {name}, an EmbeddingBag that takes maxima or learns "
                f"per_sample_weights: {_ADVICE}"
            )
        if look_up.node not in signals:
            continue
        signal = signals[look_up.node]
        signal = signal.reshape(len(signal), -1, signal.shape[-1])
        sample = _samples(name, signal.shape[1], count, signal.device)
        if look_up.to is not None:
            signal = signal[:, look_up.to]
            sample = look_up.to if sample is None else sample[look_up.to]
        if look_up.factor is not None:
            signal = signal * look_up.factor.unsqueeze(1)
        pieces.append((signal, sample))
        places.append(at)
    joined, samples = _joined(pieces)
    return LookedUp(joined, samples, count, torch.cat(places), len(table.rows))


def _samples(name: str, rows: int, count: int, device: torch.device) -> Tensor | None:
    """The sample of each row of a layer, which come sample by sample; ``None``: one row each."""
    if rows % count:
        raise ValueError(
            f"SampleSpace() does not serve {name}, whose layer computes {rows} rows for {count} "
            f"samples: {_ADVICE}"
        )
    if rows == count:
        return None
    return torch.arange(count, device=device).repeat_interleave(rows // count)


def _joined(pieces: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """All rows that use a parameter, and their samples."""
    if len(pieces) == 1:
        return pieces[0]
    samples = [
        torch.arange(signal.shape[1], device=signal.device) if sample is None else sample
        for signal, sample in pieces
    ]
    return torch.cat([signal for signal, _ in pieces], 1), torch.cat(samples)
