"""Conjugate gradients for Hermitian positive systems of complex unknowns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# A residual this many times the right-hand side cannot come from a Hermitian positive operator in practice.
DIVERGED = 1e3


class CgResult(NamedTuple):
    """Where conjugate gradients ended.

    Attributes:
        image: the solution.
        residuals: norm of the residual relative to that of the right-hand side, at the start and after each iteration.
    """

    image: Tensor
    residuals: list[float]


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    start: Tensor | None = None,
    *,
    iterations: int,
    tolerance: float,
    on_iteration: Callable[[int, Tensor], None] | None = None,
) -> CgResult:
    """Solves normal(image) = rhs (Hestenes and Stiefel, J Res Natl Bur Stand 49:409, 1952).

    Args:
        normal: Hermitian and positive (semi-)definite.
        rhs: of any shape, all of it one system.
        start: the first image; zero by default.
        iterations: at most so many.
        tolerance: stops when the residual is at most this fraction of the right-hand side, or is down to rounding.
        on_iteration: told the number of iterations done, and the image.

    Raises:
        ValueError: The right-hand side or the start is not finite.
        ArithmeticError: The operator gave values that are not finite, or showed that it is not Hermitian and positive.
    """
    if not torch.isfinite(rhs).all() or (start is not None and not torch.isfinite(start).all()):
        raise ValueError("conjugate gradients: the right-hand side or the start holds values that are not finite")
    scale = float(torch.linalg.vector_norm(rhs))
    if scale == 0:
        return CgResult(torch.zeros_like(rhs), [0.0])
    tolerance = max(tolerance, 10 * torch.finfo(rhs.dtype).eps)
    image = torch.zeros_like(rhs) if start is None else start
    residual = rhs if start is None else rhs - normal(start)
    direction = residual
    norm = float(torch.linalg.vector_norm(residual))
    residuals = [norm / scale]
    while len(residuals) <= iterations and residuals[-1] > tolerance:
        ahead = normal(direction)
        step = norm**2 / _curvature(direction, ahead)
        image = image + step * direction
        residual = residual - step * ahead
        previous, norm = norm, float(torch.linalg.vector_norm(residual))
        direction = residual + (norm / previous) ** 2 * direction
        residuals.append(norm / scale)
        _require_progress(residuals)
        if on_iteration is not None:
            on_iteration(len(residuals) - 1, image)
    return CgResult(image, residuals)


def _curvature(direction: Tensor, ahead: Tensor) -> float:
    """direction^H normal(direction), which a positive operator makes positive."""
    curvature = float(torch.vdot(direction.flatten(), ahead.flatten()).real)
    if not math.isfinite(curvature):
        raise ArithmeticError("conjugate gradients: the normal operator gave values that are not finite")
    if curvature <= 0:
        raise ArithmeticError(
            f"conjugate gradients: expected a positive operator, met the curvature {curvature:g}; "
            "is the operator Hermitian, and does the problem need regularisation?"
        )
    return curvature


def _require_progress(residuals: list[float]) -> None:
    if not residuals[-1] <= DIVERGED * max(residuals[0], 1):
        raise ArithmeticError(
            f"conjugate gradients: the residual grew to {residuals[-1]:g} times the right-hand side "
            f"in {len(residuals) - 1} iterations; is the operator Hermitian?"
        )
