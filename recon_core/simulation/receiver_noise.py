"""Noise of a receive array."""

from __future__ import annotations

import torch
from torch import Tensor

_BODY_SHARE = 0.2  # of the noise variance; the rest is each coil's own


def coil_covariance(coil_maps: Tensor, mask: Tensor) -> Tensor:
    """Noise covariance of coils that see one body, with mean variance 1.

    Most of the noise is each coil's own, as in arrays that are well decoupled. A fifth of it comes from the body, and
    is shared as far as sensitivities overlap: mean over the body of S_i conj(S_j). (Roemer et al.: The NMR phased
    array. Magn Reson Med 16:192, 1990.)

    Args:
        coil_maps: complex `[slice, coil, y, x]`.
        mask: where the body is, bool `[slice, y, x]`.

    Returns:
        complex128 `[coil, coil]`, E[n n^H].

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("expected a mask with a body in it, got an empty one")
    seen = coil_maps.movedim(1, 0)[:, mask].to(torch.complex128)
    overlap = seen @ seen.mH
    coils = len(overlap)
    body = overlap * (coils / overlap.diagonal().real.sum())
    return _BODY_SHARE * body + (1 - _BODY_SHARE) * torch.eye(coils)


def correlated_noise(covariance: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Complex normal noise with E[n n^H] = covariance between coils, complex64 `[coil, *shape]`."""
    white = torch.randn(len(covariance), *shape, generator=generator, dtype=torch.complex128)
    factor = torch.linalg.cholesky(covariance)
    noise: Tensor = factor @ white.flatten(1)
    return noise.reshape(-1, *shape).to(torch.complex64)
