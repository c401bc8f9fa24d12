"""What the operators should give, by the plain sum over pixels and samples in double precision."""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.operators.problem import Problem
from recon_core.simulation import exact_signal

_STEP = 16  # times at once: their images stay in the cache


@dataclass(frozen=True)
class Truth:
    """Exact to rounding.

    Attributes:
        data: y = A head, complex64 `[coil, shot, sample]`.
        normal: A^H A image, complex128 `[y, x]`.
        gradient: of ||A image - y||^2, which is 2 A^H (A image - y), complex128 `[y, x]`.
    """

    data: Tensor
    normal: Tensor
    gradient: Tensor


def exact_truth(problem: Problem) -> Truth:
    """Computes it once per machine: minutes at 256 x 256, so it is kept in the folder for temporary files."""
    path = Path(tempfile.gettempdir(), f"spinstream-operators-{_fingerprint(problem)}.npz")
    if not path.exists():
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **_computed(problem))
        partial.rename(path)
    with np.load(path) as kept:
        return Truth(**{name: torch.from_numpy(kept[name]) for name in ("data", "normal", "gradient")})


def _computed(problem: Problem) -> dict[str, np.ndarray]:
    maps, field = problem.coil_maps.to(torch.complex128), problem.field_hz.double()
    signal, data = (
        exact_signal(x.to(torch.complex128), maps, field, problem.trajectory, problem.times)
        for x in (problem.image, problem.head)
    )
    normal, of_data = (exact_adjoint(y, maps, field, problem.trajectory, problem.times) for y in (signal, data))
    return {
        "data": data.to(torch.complex64).numpy(),
        "normal": normal.numpy(),
        "gradient": (2 * (normal - of_data)).numpy(),
    }


def exact_adjoint(kspace: Tensor, coil_maps: Tensor, field_hz: Tensor, trajectory: Tensor, times: Tensor) -> Tensor:
    """The adjoint of `exact_signal`, as two matrix products per time of a readout.

    Args:
        kspace: complex `[coil, shot, sample]`.
        coil_maps: complex `[coil, y, x]`.
        field_hz: `[y, x]`.
        trajectory: `[2, shot, sample]` in cycles per field of view, axes (y, x).
        times: `[sample]` in seconds.

    Returns:
        `[y, x]`, in the precision of the samples.
    """
    ny, nx = field_hz.shape
    total = torch.zeros(ny, nx, dtype=kspace.dtype)
    for now in (slice(i, i + _STEP) for i in range(0, len(times), _STEP)):
        along_y, along_x = (
            _cis(k.T[..., None] * ((torch.arange(n) - n // 2) / n))
            for k, n in zip(trajectory[..., now], (ny, nx), strict=True)
        )
        phase = _cis(times[now, None, None] * field_hz)
        for samples, coil_map in zip(kspace[..., now], coil_maps, strict=True):
            rows = along_y.mT * samples.T[:, None]
            total += coil_map.conj() * ((rows @ along_x) * phase).sum(0)
    return total / math.sqrt(ny * nx)


def _cis(cycles: Tensor) -> Tensor:
    """exp(2 pi i cycles)."""
    angle = 2 * math.pi * cycles
    return torch.polar(torch.ones_like(angle), angle)


def _fingerprint(problem: Problem) -> str:
    parts = (problem.image, problem.head, problem.coil_maps, problem.field_hz, problem.trajectory, problem.times)
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in parts)).hexdigest()[:16]
