"""All contestants, with the reasons why some are missing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from benchmarks._peers import ours, with_betty, with_boat, with_jax, with_torchopt
from benchmarks._peers.method import Method
from benchmarks._peers.plain import PLAIN


@dataclass(frozen=True)
class Package:
    """Where a peer comes from.

    Attributes:
        distribution: its name on the package index.
        modules: what must be there to import it.
        needs: what it needs besides, where that may prevent the installation.
    """

    distribution: str
    modules: tuple[str, ...]
    needs: str = ""

    def missing(self) -> str:
        """How to get it, or ``""``."""
        if all(find_spec(module) for module in self.modules):
            return ""
        restriction = f" (it needs {self.needs})" if self.needs else ""
        return f"{self.distribution} is not installed: pip install '.[bench]'{restriction}"


TORCHOPT = Package("torchopt", ("torchopt",))
BETTY = Package("betty-ml", ("betty",), "Python below 3.11")
BOAT = Package("boat-torch", ("boat_torch", "higher"), "numpy below 2, so Python below 3.13")
JAXOPT = Package("jaxopt", ("jax", "jaxopt"))

# Of a central difference with steps of 0.01, which is Betty's default.
_DIFFERENCES = 1e-3


PEERS: tuple[Method, ...] = (
    Method("TorchOpt", with_torchopt.hypergradient, TORCHOPT.missing()),
    Method("Betty", with_betty.hypergradient, BETTY.missing()),
    Method(
        "Betty, differences",
        with_betty.differences,
        BETTY.missing(),
        error=_DIFFERENCES,
        error_in_float32=_DIFFERENCES,
    ),
    Method("BOAT", with_boat.hypergradient, BOAT.missing()),
    Method("JAX, compiled", with_jax.hypergradient, JAXOPT.missing(), eager=False),
)


def all_methods() -> list[Method]:
    return [*ours.methods(), PLAIN, *PEERS]


def versions() -> dict[str, str]:
    """Of each distribution that is installed."""
    found = {}
    for name in ("torchopt", "betty-ml", "boat-torch", "jax", "jaxopt"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
