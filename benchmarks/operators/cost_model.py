"""What one normal operator costs, from its shape and the throughput of three steps at one reference size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.operators.measure import milliseconds, timed
from recon_core.operators.linear_model import LinearModel


@dataclass(frozen=True)
class Work:
    """Of one normal operator: operations of the Fourier transforms and of the products, bytes of the other passes.

    With P phases (2^D for a trajectory off the grid), L terms, C coils, S slices, N pixels, M products:
    2 P L C S transforms of 5 N log2 N operations; per phase and frequency the L x L matrix from M products, 2 M L^2
    for each batch of coils, and that matrix times C S complex columns, 4 L^2 C S; and the products with maps and their
    adjoints, which read and write 8 bytes for each of the P L C S N complex numbers.
    """

    transforms: float
    products: float
    passes: float


def work(model: LinearModel, slices: int) -> Work:
    """Counts."""
    kernels = model.encoding.kernels
    phases, products, *shape = kernels.values.shape
    terms, coils, pixels = model.encoding.terms, model.coil_maps.shape[-3], math.prod(shape)
    at_once = kernels.batches(slices, coils, model.coil_maps.dtype)
    batches = math.ceil(slices / at_once.images) * math.ceil(coils / at_once.coils)
    numbers = phases * terms * coils * slices * pixels
    return Work(
        transforms=2 * numbers * 5 * math.log2(pixels),
        products=phases * pixels * (2 * products * terms**2 * batches + 4 * terms**2 * coils * slices),
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

    @classmethod
    def at_reference(cls, model: LinearModel, image: torch.Tensor, repeats: int) -> CostModel:
        """Times the transforms and the products by themselves; the passes are what is left of the whole.

        Args:
            model: one slice.
            image: `[y, x]`.
            repeats: medians of so many.
        """
        kernels, count = model.encoding.kernels, work(model, 1)
        phases, (coils, *shape) = kernels.values.shape[0], model.coil_maps.shape
        coils_at_once = kernels.batches(1, coils, model.coil_maps.dtype).coils
        spectra = torch.randn(model.encoding.terms, 1, coils_at_once, *shape, dtype=torch.complex64)
        rounds = phases * coils / coils_at_once
        steps = {
            "transform": lambda: torch.fft.ifftn(torch.fft.fftn(spectra, dim=(-2, -1)), dim=(-2, -1)),
            "product": lambda: kernels._product(spectra, 0),
            "whole": lambda: model.normal(image),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats + 1):
            for name, step in steps.items():
                seconds[name].append(timed(step)[0])
        transforms, products, whole = (milliseconds(taken[1:]) / 1e3 for taken in seconds.values())
        left = whole - rounds * (transforms + products)
        return cls(
            rounds * transforms / count.transforms, rounds * products / count.products, max(left, 0) / count.passes
        )
