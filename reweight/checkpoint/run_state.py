"""All that a training needs to go on where it was, as one state."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from reweight._problem import ranks_of, sum_of_bits
from reweight._tensors import digest, uninterrupted
from reweight.checkpoint import nested, random_states
from reweight.checkpoint.loader import ResumableLoader
from reweight.checkpoint.members import Group, Members
from reweight.wrapping import Reweighted

_VERSION = 1


class RunState:
    """The parts of a training and all random states, to be saved and loaded together.

    A training that is killed and goes on from such a state in new objects, in a new process, has
    the same parameters and weights as one that was not interrupted, bit for bit. Besides the parts,
    the state holds the gradients that optimizers have not used yet, and the random states of torch,
    its CUDA devices, numpy and Python.

    Args:
        process_group: the processes that save and load together, ``"auto"``: all, where
            ``torch.distributed`` is initialised; ``None``: this process alone. All of them call
            :meth:`state_dict` and :meth:`load_state_dict`.
        parts: whatever the training uses and has a state, by any names: the model, its optimizer,
            ``rw``, the outer optimizer, the loader or the sampler, schedulers, a ``GradScaler``, a
            moving average of the model, a ``Recorder``, random generators of your own.

    Raises:
        TypeError: a part has no state, such as a plain ``DataLoader``.
        ValueError: no parts, or the model or an optimizer of ``rw`` is not among them.

    Warns:
        UserWarning: no optimizer among the parts has the weighter's parameters, or a scheduler is
            not among them.

    Example:
        >>> import torch, reweight
        >>> from torch.utils.data import TensorDataset
        >>> from reweight.checkpoint import RunState
        >>> def start():
        ...     model, weighter = torch.nn.Linear(3, 1), reweight.LossWeighter()
        ...     optimizer = torch.optim.Adam(model.parameters())
        ...     outer_optimizer = torch.optim.Adam(weighter.parameters())
        ...     def losses(model, batch):
        ...         return (model(batch[0]).squeeze(-1) - batch[1]).square()
        ...     rw = reweight.wrap(model, weighter, losses,
        ...                        lambda model, batch: losses(model, batch).mean(), optimizer)
        ...     data = TensorDataset(torch.ones(8, 3), torch.ones(8))
        ...     loader = reweight.PairLoader(data, reweight.ReorderReuseSampler(8, 2))
        ...     return RunState(model=model, optimizer=optimizer, rw=rw,
        ...                     outer_optimizer=outer_optimizer, loader=loader)
        >>> one, other = start(), start()
        >>> other.load_state_dict(one.state_dict())
        >>> sorted(one.state_dict())
        ['gradients', 'of_processes', 'parts', 'version']
    """

    def __init__(self, *, process_group: Group = "auto", **parts: Any) -> None:
        if not parts:
            raise ValueError(
                "RunState() has no parts: pass what the training uses by name, as "
                "RunState(model=model, optimizer=optimizer, rw=rw, ...)"
            )
        for name, part in parts.items():
            _check_part(name, part)
        _check_complete(parts)
        self.parts = parts
        self._ranks = ranks_of(process_group)
        self._members = Members(process_group)

    @property
    def _optimizers(self) -> dict[str, Optimizer]:
        return {name: part for name, part in self.parts.items() if isinstance(part, Optimizer)}

    @uninterrupted
    def state_dict(self) -> dict[str, Any]:
        """The whole state, in tensors and plain values; all processes have to call.

        It goes through :func:`reweight.checkpoint.save`, through ``torch.save`` and
        ``torch.load(weights_only=True)``, and by :func:`reweight.checkpoint.to_tensors` through
        safetensors. Its tensors are those of the parts: save it, or copy it, before you train on.

        Raises:
            ValueError: gradients that wait for the optimizer differ between the processes.
            RankError: another process does something else.
        """
        gradients = {n: list(map(_saved, _gradients(o))) for n, o in self._optimizers.items()}
        own: dict[str, Any] = {"random": random_states.of_process(), "parts": {}}
        shared: dict[str, Any] = {}
        for name, part in self.parts.items():
            (own["parts"] if _is_own(part) else shared)[name] = _state_of(part)
        self._agree(gradients, shared)
        return {
            "version": _VERSION,
            "parts": shared,
            "gradients": gradients,
            "of_processes": self._members.gather(lambda: own),
        }

    @uninterrupted
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the parts, the gradients and the random generators the states that were saved.

        Args:
            state: what :meth:`state_dict` returned, in a run with parts of the same names.

        Raises:
            ValueError: it is no such state, it has other parts, or a part does not take its own;
                the parts before it then have theirs.

        Warns:
            UserWarning: it was saved by another number of processes or with other CUDA devices, so
                that random states begin anew.
        """
        keys = {"version", "parts", "gradients", "of_processes"}
        if not isinstance(state, Mapping) or not keys <= state.keys():
            found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"this is not a state of a RunState: found {found}; pass what "
                "RunState.state_dict() returned"
            )
        if state["version"] != _VERSION:
            raise ValueError(
                f"the state has version {state['version']!r}, and this release of reweight knows "
                f"version {_VERSION}: load it with the release that saved it"
            )
        own = state["of_processes"]
        saved = {**state["parts"], **own[0]["parts"]}
        if saved.keys() != self.parts.keys():
            raise ValueError(
                f"the state has the parts {', '.join(sorted(saved))}, and this RunState has "
                f"{', '.join(sorted(self.parts))}: pass the same parts by the same names"
            )
        alike = len(own) == self._members.size
        if alike:
            saved.update(own[self._members.rank]["parts"])
        for name, part in self.parts.items():
            if alike or not _is_own(part):
                _load(name, part, saved[name])
        for name, optimizer in self._optimizers.items():
            _set_gradients(name, optimizer, state["gradients"][name])
        # Last: loading may draw.
        if not alike:
            warnings.warn(
                f"the state is of {len(own)} processes, and these are {self._members.size}: "
                "random states begin anew, so that dropout and loaders draw other numbers than in "
                "a run that was not interrupted",
                stacklevel=3,
            )
        elif missing := random_states.set_process(own[self._members.rank]["random"]):
            warnings.warn(
                f"the state has random states of {missing} CUDA devices more than this process "
                "has; what is drawn there begins anew",
                stacklevel=3,
            )

    def _agree(self, gradients: dict[str, list[Any]], parts: dict[str, Any]) -> None:
        """Raise where processes have other states of what is saved of one of them only."""
        if self._ranks is None:
            return
        sums = {f"the state of {name}": _sum_of(state) for name, state in parts.items()}
        for name, found in gradients.items():
            # Shards differ between the processes.
            dense = [g for g in found if isinstance(g, Tensor) and not hasattr(g, "placements")]
            sums[f"the gradients that wait for {name}"] = sum_of_bits(dense)
        with self._ranks.together():
            told = self._ranks.texts("\n".join(f"{what}\t{n:.0f}" for what, n in sums.items()))
            rows = zip(*(text.splitlines() for text in told), strict=False)
            if differing := [row[0].split("\t")[0] for row in rows if len(set(row)) > 1]:
                raise ValueError(
                    f"{' and '.join(differing)} differ between the processes, and would be saved "
                    "of one of them only: save after an optimizer step, not between micro-batches "
                    "whose gradients were not averaged yet; save what belongs to a single process "
                    "apart"
                )


def _check_part(name: str, part: Any) -> None:
    if isinstance(part, random_states.KINDS):
        return
    if isinstance(part, DataLoader) and not hasattr(part, "state_dict"):
        raise TypeError(
            f"{name} is a DataLoader, which has no state: pass ResumableLoader({name}) and iterate "
            "over that, or use reweight.PairLoader"
        )
    if not all(callable(getattr(part, m, None)) for m in ("state_dict", "load_state_dict")):
        raise TypeError(
            f"{name} is a {type(part).__name__}, which has no state_dict() and load_state_dict(): "
            "leave it out if it never changes; save numbers of your own, such as the step, beside "
            "the state of the run"
        )


def _check_complete(parts: Mapping[str, Any]) -> None:
    """Look for what a training with these parts must have, and what is not among them."""
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    held = {id(p) for module in modules for p in module.parameters()}
    optimizers = [part for part in parts.values() if isinstance(part, Optimizer)]
    stepped = {id(p) for each in optimizers for p in _parameters(each)}
    for name, part in parts.items():
        if not isinstance(part, Reweighted):
            continue
        if not held.issuperset(map(id, part.model.parameters())):
            raise ValueError(
                f"the model of {name} is not among the parts: pass it too, as model=model"
            )
        for optimizer in part.problem.optimizers:
            if not stepped.issuperset(map(id, _parameters(optimizer))):
                raise ValueError(
                    f"the {type(optimizer).__name__} that {name} was wrapped with is not among the "
                    "parts: pass it too, as optimizer=optimizer"
                )
        if not stepped.intersection(map(id, part.problem.phi().values())):
            warnings.warn(
                f"no optimizer among the parts has the parameters of {name}.weighter: pass the "
                "outer optimizer too, or its state is lost",
                stacklevel=3,
            )
    scheduled = any("initial_lr" in group for each in optimizers for group in each.param_groups)
    if scheduled and not any(hasattr(part, "get_last_lr") for part in parts.values()):
        warnings.warn(
            "an optimizer among the parts has a learning rate schedule, and the scheduler is not "
            "among them: pass it too, or the schedule begins anew",
            stacklevel=3,
        )


def _is_own(part: Any) -> bool:
    """Whether a part has another state in each process."""
    return isinstance(part, (*random_states.KINDS, ResumableLoader))


def _state_of(part: Any) -> Any:
    if isinstance(part, random_states.KINDS):
        return random_states.of_generator(part)
    return part.state_dict()


def _load(name: str, part: Any, state: Any) -> None:
    try:
        if isinstance(part, random_states.KINDS):
            random_states.set_generator(part, state)
        else:
            part.load_state_dict(state)
    except Exception as error:
        raise ValueError(
            f"the part {name} ({type(part).__name__}) does not take its state: "
            f"{type(error).__name__}: {error}. Parts that come before it have theirs already: "
            "build the run anew before you go on"
        ) from error


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _gradients(optimizer: Optimizer) -> Iterable[Tensor | None]:
    return (p.grad for p in _parameters(optimizer))


def _saved(grad: Tensor | None) -> Any:
    """A gradient in dense tensors."""
    if grad is None or not grad.is_sparse:
        return None if grad is None else grad.detach()
    grad = grad.detach().coalesce()
    return {"indices": grad.indices(), "values": grad.values(), "size": list(grad.shape)}


def _set_gradients(name: str, optimizer: Optimizer, saved: list[Any]) -> None:
    parameters = list(_parameters(optimizer))
    if len(parameters) != len(saved):
        raise ValueError(
            f"the state has gradients of {len(saved)} parameters for {name}, and this optimizer "
            f"has {len(parameters)}"
        )
    for parameter, grad in zip(parameters, saved, strict=True):
        if isinstance(grad, Mapping):
            grad = torch.sparse_coo_tensor(grad["indices"], grad["values"], grad["size"])
        parameter.grad = None if grad is None else grad.to(parameter.device)


def _sum_of(state: Any) -> float:
    """A number for what is not a tensor in a state; 0 for what no checkpoint takes."""
    try:
        return digest(nested.Described(state).text.encode())
    except TypeError:
        return 0.0
