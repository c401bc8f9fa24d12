"""CG-SENSE: parallel imaging with any trajectory by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.conjugate_gradient import CgResult, conjugate_gradient


def cg_sense(
    model: LinearModel, kspace: Tensor, regularisation: float, iterations: int, tolerance: float = 0.0
) -> CgResult:
    """Solves (A^H A + lambda |A^H A|) x = A^H y (Pruessmann et al., Magn Reson Med 46:638, 2001).

    Args:
        model: A.
        kspace: y, prewhitened: `[coil, shot, sample]`.
        regularisation: lambda, relative to the largest eigenvalue of A^H A, so that it means the same for any number of
            samples and coils. 1e-3 tames the noise of moderate acceleration.
        iterations: at most so many.
        tolerance: stops when the residual is at most this fraction of A^H y.

    Returns:
        The image and the residuals. The same data always give the same image: the operator norm is estimated from a
        fixed start.

    Raises:
        ValueError: lambda is negative, or the data are not finite.
        ArithmeticError: From `conjugate_gradient`.
    """
    if regularisation < 0:
        raise ValueError(f"expected a regularisation of at least 0, got {regularisation:g}")
    damping = 0.0
    if regularisation > 0:
        damping = regularisation * model.norm(torch.Generator(kspace.device).manual_seed(0), iterations=10)

    def damped(image: Tensor) -> Tensor:
        return model.normal(image) + damping * image

    return conjugate_gradient(damped, model.adjoint(kspace), iterations=iterations, tolerance=tolerance)
