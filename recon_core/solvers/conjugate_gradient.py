"""Conjugate gradients for Hermitian positive systems of complex unknowns."""

from __future__ import annotations

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
        residuals: norm of the residual relative to that of the right-hand side, at the start and after each iteration;
            of several systems, that of the worst.
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
    system_axes: int | None = None,
) -> CgResult:
    """Solves normal(image) = rhs (Hestenes and Stiefel, J Res Natl Bur Stand 49:409, 1952).

    Args:
        normal: Hermitian and positive (semi-)definite.
        rhs: of any shape.
        start: the first image; zero by default.
        iterations: at most so many.
        tolerance: stops when the residual is at most this fraction of the right-hand side, or is down to rounding.
        on_iteration: told the number of iterations done, and the image.
        system_axes: how many of the last axes belong to one system; the others count systems that do not know of one
            another. By default all of `rhs` is one system.

    Raises:
        ValueError: The right-hand side or the start is not finite.
        ArithmeticError: The operator gave values that are not finite, or showed that it is not Hermitian and positive.
    """
    if not torch.isfinite(rhs).all() or (start is not None and not torch.isfinite(start).all()):
        raise ValueError("conjugate gradients: the right-hand side or the start holds values that are not finite")
    axes = tuple(range(-(system_axes or rhs.ndim), 0))
    scale = _norm(rhs, axes)
    if not bool(scale.any()):
        return CgResult(torch.zeros_like(rhs), [0.0])
    tolerance = max(tolerance, 10 * torch.finfo(rhs.dtype).eps)
    image = torch.zeros_like(rhs) if start is None else start
    residual = rhs if start is None else rhs - normal(start)
    direction, norm = residual, _norm(residual, axes)
    # A system of which zero is the solution is judged by its start.
    scale = torch.where(scale > 0, scale, norm.clamp_min(torch.finfo(norm.dtype).tiny))
    residuals = [float((norm / scale).max())]
    while len(residuals) <= iterations and residuals[-1] > tolerance:
        # A solved system rests: at rounding its steps would be 0 / 0.
        moving = norm > tolerance * scale
        ahead = normal(direction)
        curvature = _curvature(direction, ahead, moving, axes)
        step = torch.where(moving, norm**2 / curvature, 0)
        image = image + step * direction
        residual = residual - step * ahead
        previous, norm = norm, _norm(residual, axes)
        direction = residual + torch.where(moving, (norm / previous) ** 2, 0) * direction
        residuals.append(float((norm / scale).max()))
        _require_progress(residuals)
        if on_iteration is not None:
            on_iteration(len(residuals) - 1, image)
    return CgResult(image, residuals)


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return norm


def _curvature(direction: Tensor, ahead: Tensor, moving: Tensor, axes: tuple[int, ...]) -> Tensor:
    """direction^H normal(direction) of each system, which a positive operator makes positive; one where it rests."""
    curvature = torch.where(moving, (direction.conj() * ahead).real.sum(axes, keepdim=True), 1)
    least = float(curvature.min())
    if not bool(torch.isfinite(curvature).all()):
        raise ArithmeticError("conjugate gradients: the normal operator gave values that are not finite")
    if least <= 0:
        raise ArithmeticError(
            f"conjugate gradients: expected a positive operator, met the curvature {least:g}; "
            "is the operator Hermitian, and does the problem need regularisation?"
        )
    return curvature


def _require_progress(residuals: list[float]) -> None:
    if not residuals[-1] <= DIVERGED * max(residuals[0], 1):
        raise ArithmeticError(
            f"conjugate gradients: the residual grew to {residuals[-1]:g} times the right-hand side "
            f"in {len(residuals) - 1} iterations; is the operator Hermitian?"
        )
