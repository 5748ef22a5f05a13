"""Whether the second derivatives that a mode gives are those of the inner loss."""

from __future__ import annotations

import logging

from reweight._curvature import Mode
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

    def passes(
        self, mode: Mode, inner: InnerProblem, names: tuple[str, ...], *, auto: bool
    ) -> bool:
        """Whether products in ``mode`` may be used; compares them if that was not done yet.

        Args:
            mode: the mode.
            inner: the inner problem.
            names: the parameters that its loss depends on.
            auto: whether another mode may be used instead.
        """
        # Finite differences are not compared with finite differences.
        if mode in self._compared or mode == "finite_difference":
            return True
        self._compared.add(mode)
        found = self._disagreement(mode, InnerInDouble(inner, names))
        if found is None:
            return True
        by = f"by {found.share:.2g} of its size for {found.name}"
        if not found.of_the_loss:
            self.caveats[mode] = (
                "the gradients of the inner loss are not its derivatives (nor are the products "
                f"with its Hessian, {by}): is there a detach() inside the losses, a "
                "straight-through or a reversed gradient? The formula then holds for another "
                "problem than the one that is trained"
            )
            return True
        if auto:
            self.ruled_out[mode] = RuntimeError(
                f"its second derivatives are wrong {by}, as differences of gradients show"
            )
            return False
        self.caveats[mode] = (
            f"second derivatives in hvp mode {mode!r} are wrong {by}, as differences of "
            'gradients show; use hvp="auto", which goes on to another mode'
        )
        return True

    def _disagreement(self, mode: Mode, double: InnerInDouble) -> Disagreement | None:
        if reason := double.too_costly():
            logger.info("hvp mode %r is not compared with finite differences: %s", mode, reason)
            return None
        try:
            functions = double.functions(mode)
            return disagreement(
                functions.product, functions.evaluate, double.params(), double.padding()
            )
        except Exception as error:  # losses that make float32 tensors themselves, for example
            logger.info("hvp mode %r could not be compared with differences: %s", mode, str(error))
            return None
