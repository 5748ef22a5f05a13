"""A training step as one CUDA graph, for small models, where launching kernels dominates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdr.common import flattened, map_tensors

# Steps before the capture: the optimizer makes its state in the first, and libraries choose their
# kernels and take their workspaces. Three is what torch's notes on CUDA graphs advise.
_WARM_UP = 3


class CapturedStep:
    """A training step that is recorded once and replayed from then on.

    ``step(batch)`` does what ``step_fn(batch)`` would. The first three batches are trained on
    as usual, on a side stream; with the fourth the work is recorded as a CUDA graph, which then
    serves every further batch of that shape. A batch of another shape, as the last of an epoch may
    be, is trained on as usual. No batch is trained on twice or left out.

    What is recorded is work on the GPU, at the addresses and with the numbers of that moment:

    * ``step_fn`` must not read a value on the host (``.item()``, ``bool(tensor)``), so its checks
      have to be left out while ``torch.cuda.is_current_stream_capturing()``; nor may it have
      sparse gradients. After the recording no Python in it runs any more.
    * It starts with ``zero_grad(set_to_none=True)``, which makes the recorded backward pass write
      gradients rather than add to them; ``.grad`` is for the optimizer in it, and not to be read.
    * The optimizer is made with ``capturable=True``, ``fused=True`` or not. A learning rate that
      changes has to be a tensor.
    * Parameters may change in place, also by ``model.load_state_dict`` or an outer step. After
      ``optimizer.load_state_dict``, which makes new tensors, make a new ``CapturedStep``.

    Args:
        step_fn: ``batch -> loss []``: clears the gradients, takes the loss, goes backward and moves
            the parameters, in this order. An autocast region goes inside.
        example_batch: A batch of the usual shape, in any nesting of dataclasses, tuples, lists and
            mappings. It is not trained on. What is not a tensor in it is part of its shape.

    Raises:
        ValueError: Tensors of ``example_batch`` are not on one CUDA device.
    """

    def __init__(self, step_fn: Callable[[Any], Tensor], example_batch: Any) -> None:
        self._step_fn = step_fn
        flat = flattened(example_batch)
        self._graph = _Graph({x.device for x in _tensors(flat)})
        self._shape = _shape(flat)
        self._batch = map_tensors(torch.clone, example_batch)
        self._tensors = _tensors(flattened(self._batch))
        self._warm = 0
        self._loss: Tensor | None = None

    def __call__(self, batch: Any) -> Tensor:
        """Train on a batch.

        Returns:
            The loss, detached, []. Once recorded, it is one tensor that the next call overwrites:
            add it up, or clone it.

        Raises:
            RuntimeError: The step cannot be recorded. The batch has not been trained on then.
        """
        flat = flattened(batch)
        if _shape(flat) != self._shape:
            return self._graph.eager(lambda: self._step(batch))
        for static, tensor in zip(self._tensors, _tensors(flat), strict=True):
            static.copy_(tensor)
        if self._warm < _WARM_UP:
            self._warm += 1
            return self._graph.eager(lambda: self._step(self._batch))
        if self._loss is None:
            self._loss = self._graph.record(lambda: self._step(self._batch))
        self._graph.replay()
        return self._loss

    def _step(self, batch: Any) -> Tensor:
        # A loss with a graph would keep the nodes that accumulate gradients alive, and with them
        # the stream on which they were made.
        return self._step_fn(batch).detach()


class _Graph:
    """One CUDA graph and the side stream that it is recorded on."""

    def __init__(self, devices: set[torch.device]) -> None:
        if len(devices) != 1 or {device.type for device in devices} != {"cuda"}:
            found = ", ".join(sorted(map(str, devices))) or "no device, having no tensors"
            raise ValueError(
                f"CapturedStep: example_batch is on {found}; CUDA graphs need all of it on one "
                "CUDA device. Move data and model there (data.to('cuda')), or call the step "
                "function itself"
            )
        (self._device,) = devices
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._graph = torch.cuda.CUDAGraph()

    def eager(self, work: Callable[[], Tensor]) -> Tensor:
        """Run the work on the side stream, ordered with the work of the current stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Record the work without running it; the result is filled by a replay."""
        try:
            with torch.cuda.graph(self._graph, stream=self._stream):
                return work()
        except Exception as error:
            # The end of a failed recording raises once more; the first error is the cause.
            first = error.__context__ or error
            raise RuntimeError(
                "the training step cannot be recorded as a CUDA graph. Usual causes: a value read "
                "on the host, as by .item() or a check that all is finite; sparse gradients; an "
                "optimizer without capturable=True. Correct that, or call the step function "
                "itself. "
                f"The error was: {first}"
            ) from error

    def replay(self) -> None:
        """Do the recorded work, on the current stream."""
        self._graph.replay()


def _tensors(flat: list[Any]) -> list[Tensor]:
    return [x for x in flat if isinstance(x, Tensor)]


def _shape(flat: list[Any]) -> list[Any]:
    """The shapes and the structure that a recorded step relies on."""
    return [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in flat]
