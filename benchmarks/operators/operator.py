"""What one row of the table is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from benchmarks.operators.problem import Problem


class Operator(Protocol):
    """Somebody's A^H A, ready to be applied; images are complex64 `[y, x]`."""

    def normal(self, image: Tensor) -> Tensor:
        """A^H A image."""

    def gradient(self, image: Tensor) -> Tensor:
        """Of ||A image - data||^2."""


@dataclass(frozen=True)
class Row:
    """An operator that is still to be set up: its name, and what makes it from a problem and data."""

    name: str
    build: Callable[[Problem, Tensor], Operator]


class ForwardAdjoint(ABC):
    """Operators that visit the samples, complex64 `[coil, shot, sample]`."""

    def __init__(self, data: Tensor) -> None:
        self._data = data

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """A image."""

    @abstractmethod
    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H kspace."""

    def normal(self, image: Tensor) -> Tensor:
        """A^H A image."""
        return self.adjoint(self.forward(image))

    def gradient(self, image: Tensor) -> Tensor:
        """Of ||A image - data||^2."""
        return 2 * self.adjoint(self.forward(image) - self._data)


class Convolution(ABC):
    """Operators that know only A^H A, and get the adjoint of the data once."""

    def __init__(self, adjoint_of_data: Tensor) -> None:
        self._adjoint_of_data = adjoint_of_data

    @abstractmethod
    def normal(self, image: Tensor) -> Tensor:
        """A^H A image."""

    def gradient(self, image: Tensor) -> Tensor:
        """Of ||A image - data||^2."""
        return 2 * (self.normal(image) - self._adjoint_of_data)
