"""Noise of a receive array: its covariance, and the matrix that makes it white."""

from __future__ import annotations

import torch
from torch import Tensor

# A coil of whose noise variance no more than this is its own is a copy of others, up to the precision of the samples.
DEPENDENT = 1e-10


def noise_covariance(samples: Tensor) -> Tensor:
    """Covariance n n^H / (N - 1) of noise, without removal of the mean.

    Args:
        samples: complex `[coil, n]`, of a scan without excitation.

    Returns:
        complex128 `[coil, coil]`.

    Raises:
        ValueError: The samples are not finite, or no more of them than coils (the covariance would be singular).
    """
    if samples.ndim != 2:
        raise ValueError(f"expected noise samples [coil, n], got {list(samples.shape)}")
    coils, count = samples.shape
    if count <= coils:
        raise ValueError(f"expected more noise samples than the {coils} coils, got {count}")
    if not torch.isfinite(samples).all():
        raise ValueError("the noise samples hold values that are not finite")
    samples = samples.to(torch.complex128)
    return samples @ samples.mH / (count - 1)


def whitening_matrix(covariance: Tensor) -> Tensor:
    """The inverse L^-1 of the lower Cholesky factor of a covariance L L^H (Pruessmann et al., MRM 46:638, 2001).

    Applied to the coil axis, it leaves noise of unit variance per complex sample, uncorrelated between coils.

    Args:
        covariance: Hermitian `[coil, coil]`.

    Returns:
        complex64 `[coil, coil]`, lower triangular.

    Raises:
        ValueError: Names the coil that has no noise, or whose noise is a sum of that of the coils before it.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"expected a covariance [coil, coil], got {list(covariance.shape)}")
    covariance = covariance.to(torch.complex128)
    if not torch.isfinite(covariance.abs()).all():
        raise ValueError("the noise covariance holds values that are not finite")
    variances = covariance.diagonal().real
    if (variances <= 0).any():
        raise ValueError(f"noise covariance: coil {_first(variances <= 0)} (counted from 0) has no noise; is it off?")
    factor, failed = torch.linalg.cholesky_ex(covariance)
    # The square of the pivot is the part of the variance that is the coil's own. After a failure there are no more.
    dependent = factor.diagonal().real ** 2 <= DEPENDENT * variances
    if failed:
        dependent[int(failed) - 1] = True
    if dependent.any():
        raise ValueError(
            f"noise covariance: not positive definite; the noise of coil {_first(dependent)} (counted from 0) "
            "is a combination of that of the coils before it"
        )
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse.to(torch.complex64)


def _first(condition: Tensor) -> int:
    return int(condition.nonzero()[0])
