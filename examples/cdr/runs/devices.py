"""The devices to train on."""

from __future__ import annotations

import torch


def usable_device(name: str) -> str:
    """The device that ``--device`` names, if it can be used; "auto" takes cuda where there is one.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        try:
            torch.zeros(1, device=name).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ValueError(
                f"--device {name} cannot be used here ({str(error).splitlines()[0][:60]} …); give "
                "cpu, or cuda where there is a GPU"
            ) from error
    if name == "cpu":
        # On tensors this small one thread is up to five times faster than two.
        torch.set_num_threads(1)
    return name


def spread(device: str, jobs: int) -> list[str]:
    """The device of each of several processes: "cuda" is all GPUs in turn, all else as it is."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return [f"cuda:{i % gpus}" if gpus > 1 else device for i in range(jobs)]
