"""ResNet-18 of torchvision in train mode: a Meta-Weight-Net on images with wrong labels.

    python benchmarks/clients/torchvision_resnet18.py

Batch normalisation uses the statistics of the batch; outer steps leave the running ones alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

import reweight
from benchmarks.clients._report import Client, findings

CLASSES, SIZE = 4, 32
Batch = tuple[Tensor, Tensor]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return cross_entropy(model(images), labels, reduction="none")


def outer_loss(model: nn.Module, batch: Batch) -> Tensor:
    return losses(model, batch).mean()


def pictures(n: int, wrong: float = 0.0) -> Batch:
    """Noise with a bright quarter that is the class."""
    labels = torch.randint(CLASSES, (n,))
    images = torch.randn(n, 3, 2, SIZE // 2, 2, SIZE // 2)
    images[torch.arange(n), :, labels // 2, :, labels % 2] += 1.0
    labels = torch.where(torch.rand(n) < wrong, torch.randint(CLASSES, (n,)), labels)
    return images.reshape(n, 3, SIZE, SIZE), labels


def last_layers(name: str) -> bool:
    """4,100 of 11 million parameters, for the check, which solves the inner problem many times."""
    return name.startswith(("fc.", "layer4.1.bn"))


def client() -> Client:
    torch.manual_seed(0)
    model = resnet18(num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    rw = reweight.wrap(model, reweight.LossWeighter(), losses, outer_loss, optimizer)
    train = [pictures(16, wrong=0.4) for _ in range(60)]
    dev, part = pictures(16), (pictures(4, wrong=0.4), pictures(4))
    few = reweight.wrap(
        model, reweight.LossWeighter(), losses, outer_loss, optimizer, inner_params=last_layers
    )
    return Client(
        "ResNet-18", "torchvision", rw, losses, outer_loss, optimizer, train, dev, part, 100.0, few
    )


if __name__ == "__main__":
    print(findings(client))
