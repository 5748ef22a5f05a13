"""Whether the second derivatives that a mode gives are those of the inner loss."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping

from reweight._curvature import Linearisation, Mode
from reweight._problem.double import InnerInDouble
from reweight._problem.inner import InnerProblem
from reweight._problem.second_derivatives import Disagreement, disagreement

logger = logging.getLogger("reweight")


class Audit:
    """Compares the second derivatives of each mode with differences of gradients, once per mode.

    Attributes:
        ruled_out: the modes that do not work or are wrong, with the reason.
        caveats: what is wrong with modes that are used although they are wrong.
    """

    def __init__(self) -> None:
        self.ruled_out: dict[Mode, BaseException] = {}
        self.caveats: dict[str, str] = {}
        self._compared: set[Mode] = set()

    def accepted(
        self,
        linearisations: Iterable[tuple[Mode, Linearisation]],
        failures: dict[Mode, BaseException],
        inner: InnerProblem,
        *,
        auto: bool,
    ) -> Iterator[tuple[Mode, Linearisation]]:
        """Those linearisations whose products may be used, each compared when it is asked for.

        Args:
            linearisations: of the inner problem, with their modes.
            failures: the modes that are rejected are added, with the reason.
            inner: the inner problem.
            auto: whether another mode may be used instead of a wrong one.
        """
        for mode, linearisation in linearisations:
            reason = self._rejection(mode, inner, linearisation.params, auto)
            if reason is None:
                yield mode, linearisation
            else:
                failures[mode] = RuntimeError(reason)

    def note(self, failures: Mapping[Mode, BaseException]) -> None:
        """Remember modes that do not work, for later steps."""
        # Only the message: an exception holds its traceback, and so the batch, in memory.
        self.ruled_out.update({m: RuntimeError(str(error)) for m, error in failures.items()})

    def _rejection(
        self, mode: Mode, inner: InnerProblem, names: Iterable[str], auto: bool
    ) -> str | None:
        # Finite differences are not compared with finite differences.
        if mode in self._compared or mode == "finite_difference":
            return None
        found = self._disagreement(mode, inner, names)
        self._compared.add(mode)
        if found is None:
            return None
        by = f"by {found.share:.2g} of its size for {found.name}"
        if not found.of_the_loss:
            self.caveats[mode] = (
                "the gradients of the inner loss are not its derivatives (nor are the products "
                f"with its Hessian, {by}): is there a detach() inside the losses, a "
                "straight-through or a reversed gradient? The formula then holds for another "
                "problem than the one that is trained"
            )
            return None
        if auto:
            # Remembered now: whatever happens later in this step, the mode is not tried again.
            reason = f"its second derivatives are wrong {by}, as differences of gradients show"
            self.ruled_out[mode] = RuntimeError(reason)
            return reason
        self.caveats[mode] = (
            f"second derivatives in hvp mode {mode!r} are wrong {by}, as differences of "
            'gradients show; use hvp="auto", which goes on to another mode'
        )
        return None

    def _disagreement(
        self, mode: Mode, inner: InnerProblem, names: Iterable[str]
    ) -> Disagreement | None:
        double = InnerInDouble(inner, names)
        if reason := double.too_costly():
            logger.info("hvp mode %r is not compared with finite differences: %s", mode, reason)
            return None
        try:
            product = functools.partial(double.product, mode)
            return disagreement(product, double.evaluate, double.params(), double.padding())
        except Exception as error:  # losses that make float32 tensors themselves, for example
            logger.info("hvp mode %r could not be compared with differences: %s", mode, str(error))
            return None
