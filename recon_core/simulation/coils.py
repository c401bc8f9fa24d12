"""Receive coils around a head."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_COILS_PER_RING = 12
_HELMET_RADIUS_M = 0.14
_WIRE_RADIUS_M = 0.02  # thick enough for maps to stay smooth where a field of view reaches beyond the coils
_SEGMENTS = 48


def coil_maps(coils: int, positions: Tensor) -> Tensor:
    """Sensitivities of circular loops on rings around the head, from the law of Biot and Savart.

    The loops stand on a cylinder around the z axis, evenly spaced and overlapping a little; more than 12 coils are
    spread over several rings along z. A coil receives with B_x - i B_y of the field that a current in it would make.

    Args:
        coils: how many.
        positions: metres, `[..., 3]` in the order (x, y, z).

    Returns:
        complex64 `[coil, ...]` with unit root sum of squares over coils.

    Raises:
        ValueError: no coils.
    """
    if coils < 1:
        raise ValueError(f"expected at least one coil, got {coils}")
    maps = torch.stack([_sensitivity(*loop, positions) for loop in zip(*_loops(coils), strict=True)])
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)


def _loops(coils: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres `[coil, 3]`, outward normals `[coil, 3]` and radii `[coil]` in metres."""
    rings = math.ceil(coils / _COILS_PER_RING)
    number = torch.arange(coils, dtype=torch.float64)
    ring, per_ring = torch.remainder(number, rings), coils / rings
    angle = 2 * math.pi * (number / coils) + math.pi / 7  # off the symmetry axes of the head
    radius = min(0.08, 1.2 * math.pi * _HELMET_RADIUS_M / per_ring)
    height = (ring - (rings - 1) / 2) * 1.5 * radius
    normals = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
    centres = _HELMET_RADIUS_M * normals
    centres[:, 2] = height
    return centres, normals, torch.full_like(angle, radius)


def _sensitivity(centre: Tensor, normal: Tensor, radius: Tensor, positions: Tensor) -> Tensor:
    """B_x - i B_y of one loop, up to a factor."""
    upwards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    sideways = torch.linalg.cross(upwards, normal)
    turn = torch.arange(_SEGMENTS, dtype=torch.float64)[:, None] * (2 * math.pi / _SEGMENTS)
    points = centre + radius * (turn.cos() * sideways + turn.sin() * upwards)
    tangents = turn.cos() * upwards - turn.sin() * sideways
    field = torch.zeros_like(positions, dtype=torch.float64)
    for point, tangent in zip(points, tangents, strict=True):
        distance = positions - point
        field += torch.linalg.cross(tangent.expand_as(distance), distance) / _cubed_norm(distance)
    return torch.complex(field[..., 0], -field[..., 1])


def _cubed_norm(distance: Tensor) -> Tensor:
    return (distance.square().sum(-1, keepdim=True) + _WIRE_RADIUS_M**2) ** 1.5
