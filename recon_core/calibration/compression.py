"""Fewer coils: the directions that hold the energy of the data."""

from __future__ import annotations

import torch
from torch import Tensor


def compression_matrix(kspace: Tensor, energy: float, max_coils: int | None = None) -> Tensor:
    """The fewest virtual coils that keep a fraction of the energy (Buehrer et al., Magn Reson Med 57:1131, 2007).

    The rows are orthonormal, so that white noise of unit variance stays so.

    Args:
        kspace: `[coil, ...]`, prewhitened.
        energy: to keep, as a fraction from 0 to 1 of the sum of squares.
        max_coils: the most virtual coils, even where that keeps less.

    Returns:
        `[virtual, coil]` in the precision of `kspace`, strongest virtual coil first.

    Raises:
        ValueError: The fraction is out of range, or the data are zero or not finite.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"expected an energy fraction above 0 and up to 1, got {energy:g}")
    if max_coils is not None and max_coils < 1:
        raise ValueError(f"expected at least one virtual coil, got {max_coils}")
    strengths, coils = principal_coils(kspace)
    kept = strengths.cumsum(0) / strengths.sum()
    count = min(int((kept < energy).sum()) + 1, len(coils), max_coils or len(coils))
    return coils[:count]


def principal_coils(kspace: Tensor) -> tuple[Tensor, Tensor]:
    """The singular value decomposition over the coil axis of `[coil, ...]`.

    Returns:
        The energies, largest first, and the virtual coils as rows `[virtual, coil]` in the precision of `kspace`. The
        free phase of each is chosen so that it takes the first coil as it is.

    Raises:
        ValueError: The data are zero or not finite.
    """
    samples = kspace.flatten(1).to(torch.complex128)
    gram = samples @ samples.mH
    total = gram.diagonal().real.sum()
    if not torch.isfinite(total) or total == 0:
        raise ValueError("cannot find virtual coils: the data are zero or not finite")
    energies, directions = torch.linalg.eigh(gram)
    directions = directions * torch.exp(-1j * directions[0].angle())
    return energies.clamp(min=0).flip(0), directions.mH.flip(0).to(kspace.dtype)
