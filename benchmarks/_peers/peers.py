"""All contestants, with the reasons why some are missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from benchmarks._peers import ours, with_betty, with_boat, with_jax, with_torchopt
from benchmarks._peers.method import Method
from benchmarks._peers.plain import PLAIN

# By the name of a peer: its distributions, and the modules that must be there.
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "TorchOpt": ("torchopt", ("torchopt",)),
    "Betty": ("betty-ml", ("betty",)),
    "Betty, differences": ("betty-ml", ("betty",)),
    "BOAT": ("boat-torch", ("boat_torch", "higher")),
    "JAX, compiled": ("jaxopt", ("jax", "jaxopt")),
}
# Of a central difference with steps of 0.01, which is Betty's default.
_DIFFERENCES = 1e-3


def _missing(name: str) -> str:
    distribution, modules = NEEDS[name]
    absent = [module for module in modules if find_spec(module) is None]
    return f"{distribution} is not installed: pip install '.[bench]'" if absent else ""


PEERS: tuple[Method, ...] = (
    Method("TorchOpt", with_torchopt.hypergradient, _missing("TorchOpt")),
    Method("Betty", with_betty.hypergradient, _missing("Betty")),
    Method(
        "Betty, differences",
        with_betty.differences,
        _missing("Betty, differences"),
        error=_DIFFERENCES,
        error_in_float32=_DIFFERENCES,
    ),
    Method("BOAT", with_boat.hypergradient, _missing("BOAT")),
    Method("JAX, compiled", with_jax.hypergradient, _missing("JAX, compiled"), eager=False),
)


def all_methods() -> list[Method]:
    return [*ours.methods(), PLAIN, *PEERS]


def versions() -> dict[str, str]:
    """Of each distribution that is installed."""
    found = {}
    for distribution in dict.fromkeys(distribution for distribution, _ in NEEDS.values()):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found
