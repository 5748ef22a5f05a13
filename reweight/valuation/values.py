"""The weight and the influence of every training sample, by id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reweight.valuation._ids import Ids, as_ids, named
from reweight.valuation.files import read, write

By = Literal["weight", "influence"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SampleValues:
    """What was learned about each training sample, sorted by id; numpy arrays, for ``print``.

    :func:`collect` and :class:`Collector` make it. Make one yourself from the values of another
    method, and the functions of this package serve it too.

    Attributes:
        ids: ``[N]``, int64 or str, each once; sorted when the object is made.
        weights: ``[N]``, float64, the factor of each sample's loss.
        influence: ``[N]``, float64, the derivative of the dev loss with respect to the sample's
            weight, in units of the dev loss, as a mean over the times that the sample was seen;
            ``None`` if it was not gathered. Below zero: more of this sample decreases the dev loss.
            See :class:`Collector` for the scale.
        seen: ``[N]``, int64, how many times the sample was seen; default: once.

    Raises:
        TypeError: ids that are neither integers nor strings.
        ValueError: arrays of different lengths, an id that stands twice, values that are not
            finite.

    Example:
        >>> values = SampleValues([2, 0, 1], weights=[0.5, 2.0, 1.0], influence=[0.3, -0.1, 0.0])
        >>> print(values)
        3 samples: weights mean 1.17, from 0.5 to 2; 1 of 3 help the dev loss (influence below zero)
        >>> values.ids.tolist(), values.weights.tolist()
        ([0, 1, 2], [2.0, 1.0, 0.5])
        >>> values.weights_of([2, 0]).tolist()
        [0.5, 2.0]
        >>> values.worst_first().tolist()                   # the largest influence first
        [2, 1, 0]
    """

    ids: Ids
    weights: Floats
    influence: Floats | None = None
    seen: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        ids = as_ids(self.ids)
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        twice = np.unique(ids[1:][ids[1:] == ids[:-1]])
        if len(twice):
            raise ValueError(
                f"ids: {len(twice)} of them stand more than once: {named(twice)}. Each sample "
                "needs an id of its own; the ids of groups are none"
            )
        fixed: dict[str, Any] = {
            "ids": ids,
            "weights": _column("weights", self.weights, ids, order),
        }
        if self.influence is not None:
            fixed["influence"] = _column("influence", self.influence, ids, order)
        seen = np.ones(len(ids)) if self.seen is None else self.seen
        fixed["seen"] = _column("seen", seen, ids, order).astype(np.int64)
        for name, values in fixed.items():
            values.flags.writeable = False  # the order of one is that of all
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        if not len(self):
            return "no samples"
        w = self.weights
        text = (
            f"{len(self)} samples: weights mean {w.mean():.3g}, from {w.min():.3g} to {w.max():.3g}"
        )
        if self.influence is None:
            return f"{text}; influence was not gathered"
        helpful = int((self.influence < 0).sum())
        return f"{text}; {helpful} of {len(self)} help the dev loss (influence below zero)"

    def rows_of(self, ids: Any) -> NDArray[np.int64]:
        """The rows of samples in this table.

        Args:
            ids: ``[M]``, integers or strings as the table has.

        Raises:
            TypeError: ids of the other kind.
            ValueError: some of them are not in the table.
        """
        wanted = as_ids(ids)
        if len(wanted) and len(self) and wanted.dtype.kind != self.ids.dtype.kind:
            raise TypeError(
                f"ids: got {named(wanted, 1)}, but the table holds {named(self.ids, 1)}: "
                "integers and strings are never equal"
            )
        rows = np.searchsorted(self.ids, wanted).clip(max=max(len(self) - 1, 0))
        found = self.ids[rows] == wanted if len(self) else np.zeros(len(wanted), bool)
        if not found.all():
            raise ValueError(
                f"ids: {int((~found).sum())} of {len(wanted)} have no values: "
                f"{named(wanted[~found])}. Collect over a loader that visits every sample "
                "(drop_last=False), or select the samples that have values with "
                "torch.utils.data.Subset"
            )
        return rows

    def weights_of(self, ids: Any) -> Floats:
        """The weights ``[M]`` of the samples ``ids``, in their order; errors as :meth:`rows_of`."""
        return self.weights[self.rows_of(ids)]

    def worst_first(self, by: By = "influence", *, strata: Any = None) -> Ids:
        """All ids, from the most harmful to the most helpful; equal ones by ascending id.

        Influences of different classes can't be compared where the model is biased: each sample of
        a class that it predicts too seldom seems to help, one with a wrong label too. With class
        labels as strata, each beginning of the order holds the same share of each class.

        Args:
            by: ``"influence"``: the largest first; ``"weight"``: the smallest first.
            strata: ``[N]``, the stratum of each sample (integers or strings), in the order of
                :attr:`ids`.

        Raises:
            ValueError: another word, the influence was not gathered, or strata of another number.

        Example:
            >>> values = SampleValues([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0], [0.4, 0.3, 0.2, 0.1])
            >>> values.worst_first(strata=["cat", "cat", "dog", "dog"]).tolist()
            [0, 2, 1, 3]
        """
        goodness = self.goodness(by)
        if strata is None:
            return self.ids[np.argsort(goodness, kind="stable")]
        group, counts = self.grouped(strata)[1:]
        order = np.lexsort((goodness, group))
        rank = np.empty(len(self))
        rank[order] = np.arange(len(self)) - (np.cumsum(counts) - counts)[group[order]]
        # The middle of each sample's part of its stratum: the same from both ends.
        return self.ids[np.argsort((rank + 0.5) / counts[group], kind="stable")]

    def grouped(self, strata: Any) -> tuple[Ids, NDArray[np.intp], NDArray[np.intp]]:
        """The names of the strata, the stratum of each sample ``[N]``, and the sizes.

        Raises:
            TypeError: strata that are no integers or strings.
            ValueError: there is not one for each sample.
        """
        names = as_ids(strata, "strata")
        if len(names) != len(self):
            raise ValueError(
                f"strata: there are {len(names)} of them for {len(self)} samples: pass one for "
                "each of values.ids, in that order"
            )
        return np.unique(names, return_inverse=True, return_counts=True)

    def goodness(self, by: By) -> Floats:
        """``[N]``, the higher the better: the weights, or the influence times -1.

        Raises:
            ValueError: as :meth:`worst_first`.
        """
        if by == "weight":
            return self.weights
        if by != "influence":
            raise ValueError(f'by={by!r}: choose "influence" or "weight"')
        if self.influence is None:
            raise ValueError(
                'by="influence": the influence was not gathered. Pass dev_batch to collect, gather '
                'it in the outer steps with a Collector, or choose by="weight"'
            )
        return -self.influence

    def with_influence_of(self, other: SampleValues) -> SampleValues:
        """These weights with the influence and the counts of another table.

        The influence that was gathered in outer steps belongs to the whole training, the weights
        to its end.

        Raises:
            ValueError: ``other`` has no influence, or not of all samples.
        """
        rows, influence = other.rows_of(self.ids), -other.goodness("influence")
        assert other.seen is not None
        return SampleValues(self.ids, self.weights, influence[rows], other.seen[rows])

    def save(self, path: str | Path) -> None:
        """Write a ``.parquet``, ``.csv`` or ``.npz`` file, atomically.

        The columns are ``id``, ``weight``, ``influence`` (where gathered) and ``seen``. The file
        states units and signs: a parquet file in the metadata of its columns, an npz file in the
        JSON text ``about``, and a csv file in ``<name>.csv-metadata.json`` beside it.

        Raises:
            ValueError: another extension.
            ImportError: a parquet file, and pyarrow is not installed.
            FileNotFoundError: the folder does not exist.
        """
        columns = {"id": self.ids, "weight": self.weights}
        if self.influence is not None:
            columns["influence"] = self.influence
        assert self.seen is not None
        write(path, columns | {"seen": self.seen})

    @classmethod
    def load(cls, path: str | Path) -> SampleValues:
        """Read what :meth:`save` wrote, or a file with at least the columns ``id`` and ``weight``.

        Raises:
            ValueError: columns that are missing or hold something else, ids that stand twice,
                values that are not finite.
            ImportError: a parquet file, and pyarrow is not installed.
            FileNotFoundError: there is no such file.
        """
        found = read(path)
        try:
            return cls(found["id"], found["weight"], found.get("influence"), found.get("seen"))
        except (TypeError, ValueError) as error:
            raise type(error)(f"path={str(path)!r}: {error}") from error


def _column(name: str, values: Any, ids: Ids, order: NDArray[np.intp]) -> Floats:
    array = np.array(values, dtype=np.float64)
    if array.shape != ids.shape:
        raise ValueError(
            f"{name} has shape {array.shape} for {len(ids)} ids: pass one entry for each sample"
        )
    array = array[order]
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(
            f"{name} is {array[bad][0]} for {int(bad.sum())} of {len(ids)} samples: "
            f"{named(ids[bad])}"
        )
    return array
