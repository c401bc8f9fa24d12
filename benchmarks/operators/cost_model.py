"""What one normal operator costs, from its shape and the throughput of three steps at one reference size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.operators.measure import timed
from recon_core.operators.linear_model import LinearModel


@dataclass(frozen=True)
class Work:
    """Of one normal operator: operations of the Fourier transforms and of the products, bytes of the other passes.

    With P phases (2^D for a trajectory off the grid), L terms, C coils, S slices, N pixels, J nodes: 2 P L C S
    transforms of 5 N log2 N operations; per phase, frequency, coil and slice a J x L and an L x J real matrix times a
    complex column, 8 J L; and the products with maps and their adjoints, which read and write 8 bytes for each of the
    P L C S N complex numbers.
    """

    transforms: float
    products: float
    passes: float


def work(model: LinearModel, slices: int) -> Work:
    """Counts."""
    kernels = model.encoding.kernels
    phases, nodes, *shape = kernels.values.shape
    terms, coils, pixels = model.encoding.terms, model.coil_maps.shape[-3], math.prod(shape)
    numbers = phases * terms * coils * slices * pixels
    return Work(
        transforms=2 * numbers * 5 * math.log2(pixels),
        products=8 * nodes * numbers,
        passes=2 * 2 * 8 * numbers,
    )


@dataclass(frozen=True)
class CostModel:
    """Seconds for each unit of work, from the reference alone."""

    transform: float
    product: float
    byte: float

    def seconds(self, of: Work) -> float:
        """What a normal operator should take."""
        return self.transform * of.transforms + self.product * of.products + self.byte * of.passes


class Reference:
    """The size that the model's constants come from: transforms, products and the whole, timed apart."""

    def __init__(self, model: LinearModel, image: torch.Tensor) -> None:
        """Takes a model of one slice, and an image `[y, x]`."""
        kernels = model.encoding.kernels
        phases, (coils, *shape) = kernels.values.shape[0], model.coil_maps.shape
        coils_at_once = kernels.batches(1, coils, model.coil_maps.dtype).coils
        spectra = torch.randn(model.encoding.terms, 1, coils_at_once, *shape, dtype=torch.complex64)
        self._work = work(model, 1)
        self._rounds = phases * coils / coils_at_once  # of transforms and products in the whole
        self._steps: list[Callable[[], object]] = [
            lambda: torch.fft.ifftn(torch.fft.fftn(spectra, dim=(-2, -1)), dim=(-2, -1)),
            lambda: kernels._product(spectra, 0),
            lambda: model.normal(image),
        ]
        self._seconds: list[list[float]] = [[] for _ in self._steps]
        for step in self._steps:
            step()

    def measure(self) -> None:
        """Once more."""
        for step, seconds in zip(self._steps, self._seconds, strict=True):
            seconds.append(timed(step)[0])

    def model(self) -> CostModel:
        """The passes are what transforms and products leave of the whole."""
        transforms, products, whole = (statistics.median(seconds) for seconds in self._seconds)
        transforms, products = self._rounds * transforms, self._rounds * products
        return CostModel(
            transform=transforms / self._work.transforms,
            product=products / self._work.products,
            byte=max(whole - transforms - products, 0) / self._work.passes,
        )
