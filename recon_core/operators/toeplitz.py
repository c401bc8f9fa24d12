"""Toeplitz embedding: A^H diag(w) A of any sampling as a convolution, without a visit to the samples.

The entries of A^H diag(w) A depend on the difference of two pixels only, so that it is a product in the Fourier domain,
on the image's own grid when the samples lie on it, on the doubled grid otherwise (Feichtinger, Groechenig and Strohmer,
Numer Math 69:423, 1995; Fessler et al., IEEE Trans Signal Process 53:3393, 2005).

The doubled grid is never formed. Its even and odd frequencies on each axis are 2^D phases, each of which is a
transform of the size of the image, of the image times a modulation of half a grid step.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recon_core.operators.memory import Batches, plan_batches, require_memory

if TYPE_CHECKING:
    from recon_core.operators.sampling import Sampling

_TILES = {"cpu": 2**11, "cuda": 2**16}  # frequencies at once: what a processor's cache holds, what fills a GPU

_WORK = 6  # grids of differences, real ones, that exist while a kernel is made


class ToeplitzKernels:
    """K: from images of all time functions to images of all time functions, `sum_l' F^H diag(conj(w_l) w_l') F u_l'`.

    The product of two functions of time is known from the nodes, `conj(w_l) w_l' = sum_j q_j P_jl P_jl'`. So instead
    of a kernel for each pair of terms there is one for each node, `F^H diag(q_j) F`, and at each frequency the L x L
    matrix is applied as P^T diag P: products with one small matrix, the same for all frequencies, coils and images.

    Attributes:
        values: transfer functions, real `[phase, node, *shape]`, in the order of the FFT: one phase for samples on the
            grid, 2^D otherwise.
        nodes: P, real `[node, term]`; None where it is the identity.
    """

    def __init__(self, values: Tensor, nodes: Tensor | None = None) -> None:
        self.values = values
        self.nodes = nodes
        self._terms = values.shape[1] if nodes is None else nodes.shape[1]
        self._axes = tuple(range(-(values.ndim - 2), 0))
        self._tile = _TILES[values.device.type]
        self._modulations = _modulations(values.shape[0], values.shape[2:], values.dtype, values.device)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tensors = (self.values, self.nodes, self._modulations)
        return sum(x.nbytes for x in tensors if x is not None)

    def coil_sum(self, terms: Tensor, coil_maps: Tensor, at_once: Batches) -> Tensor:
        """`sum_c conj(S_c) K S_c u`: from u `[..., term, *shape]` to the same, coil maps `[..., coil, *shape]`.

        Leading axes broadcast. The result does not depend on the batches but for rounding.
        """
        d = len(self._axes)
        lead = np.broadcast_shapes(terms.shape[: -d - 1], coil_maps.shape[: -d - 1])
        images = _flat(terms.to(terms.dtype.to_complex()), lead, d).movedim(1, 0)
        maps = _flat(coil_maps, lead, d)
        some = zip(torch.split(images, at_once.images, 1), torch.split(maps, at_once.images), strict=True)
        parts = [self._coil_sum(*pair, at_once.coils) for pair in some]
        return torch.cat(parts, 1).movedim(0, 1).reshape(*lead, *terms.shape[-d - 1 :])

    def batches(self, images: int, coils: int, dtype: torch.dtype) -> Batches:
        """How many images and coils fit into the memory that is free now.

        Raises:
            MemoryError: a single coil does not fit.
        """
        pixels = math.prod(self.values.shape[2:])
        one = self._terms * pixels
        if self.nodes is not None and self.values.is_cuda:  # there, all coils and images meet the nodes at once
            one += len(self.nodes) * min(pixels, self._tile)
        return plan_batches(images, coils, one * dtype.to_complex().itemsize, self.values.device)

    def _coil_sum(self, images: Tensor, maps: Tensor, at_once: int) -> Tensor:
        """Of images `[term, image, *shape]` and maps `[image, coil, *shape]`."""
        total = torch.zeros_like(images, dtype=torch.promote_types(images.dtype, maps.dtype))
        for phase in range(len(self.values)):
            for some in torch.split(maps, at_once, 1):
                # A pass over all coils and terms takes as long as half of an FFT: there are no more than needed.
                weights = some if self._modulations is None else some * self._modulations[phase].to(images.dtype)
                spectra = torch.fft.fftn(images[:, :, None] * weights, dim=self._axes)
                convolved = torch.fft.ifftn(self._product(spectra, phase), dim=self._axes).mul_(weights.conj())
                total += convolved.sum(2) if convolved.shape[2] > 1 else convolved[:, :, 0]
        return total / len(self.values)

    def _product(self, spectra: Tensor, phase: int) -> Tensor:
        """The product over terms at each frequency of `[term, image, coil, *shape]`."""
        values = self.values[phase].to(spectra.dtype.to_real())
        if self.nodes is None:
            return spectra * values[:, None, None]
        values = values.flatten(1)
        parts = torch.view_as_real(spectra).reshape(len(spectra), -1, 2 * values.shape[1])  # [term, item, part]
        after = torch.empty_like(parts)
        # A batch of products, as threads share it well, and small matrices badly.
        items, products = parts.movedim(1, 0), after.movedim(1, 0)
        nodes = self.nodes.to(values).expand(len(items), -1, -1)
        for start in range(0, values.shape[1], self._tile):
            transfer = values[:, start : start + self._tile].repeat_interleave(2, -1)  # real and imaginary parts
            here = slice(2 * start, 2 * (start + self._tile))
            products[..., here] = nodes.mT @ (nodes @ items[..., here]).mul_(transfer)
        return torch.view_as_complex(after.view(*spectra.shape, 2))


def doubled_grid(sampling: Sampling, weights: Tensor) -> Tensor:
    """The transfer functions of `A^H diag(w) A` on the doubled grid.

    Args:
        sampling: A, anywhere between the points of the grid.
        weights: w, real `[product, shot, sample]`.

    Returns:
        Real `[2^D, product, *shape]`: the even and odd frequencies of each axis.

    Raises:
        MemoryError: they do not fit.
    """
    doubled = 2 ** len(sampling.shape) * math.prod(sampling.shape) * weights.itemsize
    require_memory((len(weights) + _WORK) * doubled, "the Toeplitz kernels", weights.device)
    kernels = weights.new_empty(2 ** len(sampling.shape), len(weights), *sampling.shape)
    places, phases = difference_blocks(sampling)
    # Weights are real, so that the differences d and -d are conjugate: half of the blocks are enough.
    half = [i for i, place in enumerate(places) if place[0].start > 0]
    for number, w in enumerate(weights):
        blocks = sampling.adjoint(phases[half] * w) / math.sqrt(math.prod(sampling.shape))
        kernels[:, number] = _phases(_transfer_function([places[i] for i in half], blocks))
    return kernels


def difference_blocks(sampling: Sampling) -> tuple[list[tuple[slice, ...]], Tensor]:
    """The blocks of the grid of pixel differences.

    Differences run from -N to N - 1 on each axis: 2^D blocks of the size of an image, each of which is one adjoint of
    phase-shifted samples, so no operator for the doubled grid is needed.

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
        k = sampling.trajectory.double()
        cycles = torch.tensordot(k.new_tensor(centres), k, 1)
        phases.append(torch.exp(2j * math.pi * cycles))
    return places, torch.stack(phases).to(sampling.trajectory.dtype.to_complex())


def _transfer_function(places: list[tuple[slice, ...]], blocks: Tensor) -> Tensor:
    """Real, `[2 N]` per axis, in the order of the FFT, from the blocks of differences >= 0 along the first axis."""
    shape = blocks.shape[1:]
    spread = blocks.new_zeros([2 * n for n in shape])
    for place, block in zip(places, blocks, strict=True):
        spread[place] = block
    # The difference -N, which no pair of pixels has, stays zero on the side that is filled in.
    others = (slice(1, None),) * (len(shape) - 1)
    ahead = spread[(slice(shape[0] + 1, None), *others)]
    spread[(slice(1, shape[0]), *others)] = ahead.flip(tuple(range(len(shape)))).conj()
    # The operator is Hermitian, so what is imaginary comes from the difference -N alone.
    kernel: Tensor = torch.fft.fftn(torch.fft.ifftshift(spread)).real
    return kernel


def _phases(kernel: Tensor) -> Tensor:
    """Even and odd frequencies apart: from `[2 N]` per axis to `[2^D, *shape]`."""
    dimensions = kernel.ndim
    split = kernel.reshape([n for whole in kernel.shape for n in (whole // 2, 2)])
    return split.permute(*range(1, 2 * dimensions, 2), *range(0, 2 * dimensions, 2)).flatten(0, dimensions - 1)


def _modulations(phases: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """exp(-pi i p n / N) for each phase p, complex `[phase, *shape]`; None where there is but one phase."""
    if phases == 1:
        return None
    cycles = torch.zeros(1, *shape, dtype=torch.float64, device=device)
    for axis, n in enumerate(shape):
        half_step = torch.arange(n, dtype=torch.float64, device=device) / (2 * n)
        along = half_step.view(-1, *[1] * (len(shape) - axis - 1))
        cycles = torch.stack([cycles, cycles + along], 1).flatten(0, 1)
    return torch.exp(-2j * math.pi * cycles).to(dtype.to_complex())


def _flat(x: Tensor, lead: tuple[int, ...], dimensions: int) -> Tensor:
    """Broadcasts the axes before the last `dimensions + 1` to `lead` and makes them one."""
    inner = x.shape[-dimensions - 1 :]
    return x.expand(*lead, *inner).reshape(-1, *inner)
