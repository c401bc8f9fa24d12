"""A = sum_l w_l(t) F S c_l(psi) around anybody's non-uniform Fourier transform F."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from benchmarks.operators.operator import ForwardAdjoint
from benchmarks.operators.problem import Problem


class Segmented(ForwardAdjoint):
    """With the low-rank terms that ours uses; all terms and coils go through the transform as one batch."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        super().__init__(data)
        self._coil_maps = problem.coil_maps
        self._weights = problem.terms.weights[:, None, None]
        self._coefficients = problem.terms.coefficients

    @abstractmethod
    def transform(self, images: Tensor) -> Tensor:
        """F of `[term, coil, y, x]`, to `[term, coil, shot, sample]`."""

    @abstractmethod
    def transform_adjoint(self, kspace: Tensor) -> Tensor:
        """F^H of `[term, coil, shot, sample]`, to `[term, coil, y, x]`."""

    def forward(self, image: Tensor) -> Tensor:
        """To `[coil, shot, sample]`."""
        return (self.transform((self._coefficients * image)[:, None] * self._coil_maps) * self._weights).sum(0)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[coil, shot, sample]`."""
        images = self.transform_adjoint(kspace * self._weights)
        return torch.einsum("lcyx,lyx,cyx->yx", images, self._coefficients.conj(), self._coil_maps.conj())
