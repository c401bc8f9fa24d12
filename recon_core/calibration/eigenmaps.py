"""Coil maps as dominant eigenvectors, one per pixel: what ESPIRiT and Walsh have in common."""

from __future__ import annotations

import torch
from torch import Tensor

# Entries of pixelwise matrices to hold at a time, so that memory does not grow with the image.
CHUNK = 2**24


def dominant_eigenpairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues `[...]` and their unit eigenvectors `[coil, ...]` of Hermitian `[..., coil, coil]`."""
    values, vectors = torch.linalg.eigh(matrices)
    return values[..., -1], vectors[..., -1].movedim(-1, 0)


def with_reference(maps: Tensor, virtual_coil: Tensor) -> Tensor:
    """Turns maps `[coil, ...]` so that a virtual coil `[coil]` is real and positive everywhere.

    An eigenvector has no phase of its own. Relative to a combination of coils it is smooth wherever that combination
    receives signal, as the strongest virtual coil does nearly everywhere (the choice of BART's ecalib, too).
    """
    received = torch.tensordot(virtual_coil.to(maps.dtype), maps, 1)
    return maps * torch.exp(-1j * received.angle())
