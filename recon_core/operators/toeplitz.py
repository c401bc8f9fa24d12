"""Toeplitz embedding: the normal operator of any sampling as a convolution on the doubled grid.

A^H A depends on the difference of two pixels only. Differences run from -N to N - 1 on each axis: 2^D blocks of the
size of an image, each of which is one adjoint of phase-shifted samples, so no operator for the doubled grid is needed.
Feichtinger, Groechenig and Strohmer, Numer Math 69:423 (1995); Fessler et al., IEEE Trans Signal Process 53:3393
(2005).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recon_core.operators.sampling import Sampling


def difference_blocks(sampling: Sampling) -> tuple[list[tuple[slice, ...]], Tensor]:
    """The blocks of the grid of pixel differences.

    Returns:
        Where each block lies on the grid of differences, `[2 N]` per axis starting at -N; and phases `[block, shot,
        sample]` that samples need for `sampling.adjoint` to give `sum_k samples(k) exp(2 pi i k d / N) / sqrt(prod N)`
        at the differences d of each block.
    """
    places, phases = [], []
    for corner in itertools.product((0, 1), repeat=len(sampling.shape)):
        starts = [n * c for n, c in zip(sampling.shape, corner, strict=True)]
        places.append(tuple(slice(a, a + n) for a, n in zip(starts, sampling.shape, strict=True)))
        centres = [(a - n + n // 2) / n for a, n in zip(starts, sampling.shape, strict=True)]
        cycles = torch.tensordot(sampling.trajectory.new_tensor(centres).double(), sampling.trajectory.double(), 1)
        phases.append(torch.exp(2j * math.pi * cycles))
    return places, torch.stack(phases).to(sampling.trajectory.dtype.to_complex())


def toeplitz_kernel(sampling: Sampling) -> Tensor:
    """The transfer function of A^H A: real, `[2 N]` per axis, in the order of the FFT."""
    places, phases = difference_blocks(sampling)
    blocks = sampling.adjoint(phases) / math.sqrt(math.prod(sampling.shape))
    spread = blocks.new_empty([2 * n for n in sampling.shape])
    for place, block in zip(places, blocks, strict=True):
        spread[place] = block
    # A^H A is Hermitian, so what is imaginary comes from the difference -N alone, which no pair of pixels has.
    kernel: Tensor = torch.fft.fftn(torch.fft.ifftshift(spread)).real
    return kernel.contiguous()


def apply_toeplitz(kernel: Tensor, image: Tensor) -> Tensor:
    """A^H A of `[..., *shape]`."""
    axes = tuple(range(-kernel.ndim, 0))
    sizes = image.shape[-kernel.ndim :]
    spectrum = torch.fft.fftn(image, s=kernel.shape, dim=axes)
    result: Tensor = torch.fft.ifftn(spectrum.mul_(kernel), dim=axes)
    for axis, n in zip(axes, sizes, strict=True):
        result = result.narrow(axis, 0, n)
    return result
