"""The unit of a trajectory, which MRD leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

UNITS = ("cycles/fov", "cycles/voxel", "rad/voxel", "1/m")

FILLS = 0.7
"""How far into k-space a readout must reach under its unit: 1 is the edge."""

MISSES = 0.5
"""How far a readout may reach at most under any other unit that keeps it within k-space."""


HALF_A_SAMPLE = 0.5 + 1e-3
"""How far beyond the edge of k-space a sample may lie, in cycles per field of view, with room for rounding."""


def factors(matrix: Sequence[int], fov_m: Sequence[float]) -> Mapping[str, NDArray[np.float64]]:
    """By unit, what turns a trajectory into cycles per field of view: float64 `[axis]`.

    Args:
        matrix: encoded matrix, by axis.
        fov_m: encoded field of view in metres, by axis.
    """
    n = np.array(matrix, dtype=np.float64)
    return {
        "cycles/fov": np.ones_like(n),
        "cycles/voxel": n,
        "rad/voxel": n / (2 * np.pi),
        "1/m": np.array(fov_m, dtype=np.float64),
    }


def reaches(trajectory: NDArray[np.float32], factor: NDArray[np.float64], matrix: Sequence[int]) -> tuple[float, bool]:
    """How far `[sample, axis]` reaches, as a fraction of the way to the edge of k-space, and whether it stays inside.

    Half a sample beyond the edge is inside.
    """
    cycles, n = np.abs(trajectory) * factor, np.array(matrix)
    inside = bool((cycles <= n / 2 + HALF_A_SAMPLE).all())
    return float(np.linalg.norm(cycles / (n / 2), axis=1).max(initial=0)), inside


def recognised(trajectory: NDArray[np.float32], matrix: Sequence[int], fov_m: Sequence[float]) -> str:
    """The unit of a readout `[sample, axis]`, if it is unmistakable.

    Readouts cross k-space or leave its centre for its edge, so that the right unit brings them close to the edge and
    not beyond. It is unmistakable when under every other unit they leave k-space or do not get half way. A readout that
    falls short (a blade, a navigator) may still be taken for the wrong unit, but then later ones leave k-space, which
    is refused.

    Raises:
        ValueError: no unit fits, or more than one; says how far the readout reaches under each.
    """
    found = {unit: reaches(trajectory, factor, matrix) for unit, factor in factors(matrix, fov_m).items()}
    possible = [unit for unit, (reach, inside) in found.items() if inside and reach >= MISSES]
    if len(possible) == 1 and found[possible[0]][0] >= FILLS:
        return possible[0]
    seen = ", ".join(f"{reach:.0%} as {unit}" for unit, (reach, _) in found.items())
    raise ValueError(
        f"the unit of the trajectory is not certain: its values go up to {np.abs(trajectory).max():g}, on a matrix of "
        f"{' x '.join(map(str, matrix))} that is {seen} of the way to the edge of k-space; set the property unit of "
        f"Trajectory to one of these, or source to header"
    )
