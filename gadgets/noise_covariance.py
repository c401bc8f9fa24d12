"""A measured noise covariance, and how it outlives the session that measured it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from gadgets.stored import save_arrays


@dataclass(frozen=True, eq=False)
class NoiseCovariance:
    """How the noise of the receiver channels hangs together.

    Attributes:
        matrix: complex128 `[coil, coil]`, the mean of n n^H over noise samples n `[coil]`.
        dwell_us: sampling time of the noise samples in microseconds, 0 where unknown.
        labels: names of the coils, in the order of the channels; empty where unknown.
    """

    matrix: NDArray[np.complex128]
    dwell_us: float
    labels: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes an .npz file, which another session sees whole or not at all."""
        save_arrays(path, covariance=self.matrix, dwell_us=self.dwell_us, labels=np.array(self.labels, dtype=str))

    @classmethod
    def load(cls, path: Path) -> NoiseCovariance:
        """Reads an .npz file with `covariance` `[coil, coil]`, `dwell_us` and, if the file has them, `labels`.

        Raises:
            ValueError: the file cannot be read, lacks one of these, or holds no Hermitian matrix.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                matrix = np.asarray(file["covariance"], dtype=np.complex128)
                dwell_us = float(file["dwell_us"])
                labels = tuple(str(label) for label in file["labels"]) if "labels" in file else ()
        except (OSError, EOFError, LookupError, AttributeError, TypeError, ValueError, BadZipFile, zlib.error) as error:
            raise ValueError(f"cannot read the noise covariance {path.name}: {error}") from error
        if not _is_hermitian(matrix):
            raise ValueError(
                f"expected a finite Hermitian matrix as covariance in {path.name}, got an array of shape {matrix.shape}"
            )
        return cls(matrix, dwell_us, labels)

    def in_order(self, labels: tuple[str, ...]) -> NoiseCovariance:
        """The same with the coils in the order of `labels`; unchanged where either side has no labels.

        Raises:
            ValueError: these are other coils.
        """
        if not labels or not self.labels or labels == self.labels:
            return self
        if sorted(labels) != sorted(self.labels) or len(set(labels)) < len(labels):
            raise ValueError(f"expected noise of the coils {', '.join(labels)}, got that of {', '.join(self.labels)}")
        order = [self.labels.index(label) for label in labels]
        return NoiseCovariance(self.matrix[np.ix_(order, order)], self.dwell_us, labels)


def _is_hermitian(matrix: NDArray[np.complex128]) -> bool:
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    return square and bool(
        np.isfinite(matrix).all() and np.allclose(matrix, matrix.conj().T, atol=1e-6 * np.abs(matrix).max())
    )
