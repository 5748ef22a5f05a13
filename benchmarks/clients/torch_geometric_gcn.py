"""A GCN of torch_geometric on Zachary's karate club: one weight for each labelled node.

    python benchmarks/clients/torch_geometric_gcn.py

The batch is the whole graph, a Data object with a mask. A labelled node is a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.nn import GCNConv

import reweight
from benchmarks.clients._report import Client, findings

NODES = 34


class GCN(nn.Module):
    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = GCNConv(features, hidden), GCNConv(hidden, classes)

    def forward(self, data: Data) -> Tensor:
        hidden = self.first(data.x, data.edge_index).tanh()
        return self.second(hidden, data.edge_index)


def losses(model: nn.Module, data: Data) -> reweight.Losses:
    nodes = data.mask.nonzero().flatten()
    loss = cross_entropy(model(data)[nodes], data.y[nodes], reduction="none")
    return reweight.Losses(loss, inputs=nodes)


def outer_loss(model: nn.Module, data: Data) -> Tensor:
    return losses(model, data).weighted.mean()


def client() -> Client:
    torch.manual_seed(0)
    graph = KarateClub()[0]
    mask = torch.rand(NODES) < 0.6
    dev = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y, mask=~mask)
    labels = torch.where(torch.rand(len(graph.y)) < 0.3, torch.randint(4, graph.y.shape), graph.y)
    data = Data(x=graph.x, edge_index=graph.edge_index, y=labels, mask=mask)  # 30 % are drawn anew
    model = GCN(graph.num_features, 32, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-3)
    rw = reweight.wrap(model, reweight.TableWeighter(NODES), losses, outer_loss, optimizer)
    train, part = [data] * 50, (data, dev)
    return Client(
        "GCN", "torch_geometric", rw, losses, outer_loss, optimizer, train, dev, part, damping=0.01
    )


if __name__ == "__main__":
    print(findings(client))
