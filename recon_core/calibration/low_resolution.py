"""The centre of k-space on a grid, whatever the trajectory: what coil maps are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from recon_core.density import pipe_menon
from recon_core.fourier import fft_centred, resize_centred
from recon_core.interpolate import interpolated
from recon_core.operators.cartesian import is_whole
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import Sampling, sampling_operator
from recon_core.solvers.conjugate_gradient import conjugate_gradient

# Samples this far beyond the region, in cycles per field of view, are used too, because a grid rolls off where its
# samples end: the error at the edge of a 24 x 24 region falls from 35 % to 2 %, that of the whole from 0.7 % to 0.06 %.
MARGIN = 8

# The density-compensated adjoint alone is 0.1 % off for radial samples, but 1 to 6 % for spirals at the Nyquist limit;
# these few steps from there bring it to 0.2 %, and are few enough not to amplify the noise.
ITERATIONS = 5


# How far, in cycles per field of view, a point of the region may be from the nearest sample. Interleaves that lie apart
# by 1.2 cycles leave gaps of 0.6. A spiral of variable density, five times accelerated, has ever wider gaps farther
# out: maps from 24 x 24 points cost the diffusion solver 2 to 4 dB, maps from 12 x 12 less than one. Fewer points than
# these tell coils apart worse than aliasing does.
DENSE, LARGEST_GAP = 0.6, 0.95
NEEDED_RADIUS = 6


class NotFullySampledError(ValueError):
    """The region has points of k-space without a sample near them."""


class OffResonance(NamedTuple):
    """What blurs the centre of k-space too, and more so the later it is visited.

    Attributes:
        times: of the samples, in seconds, `[shot, sample]`.
        field_hz: over the field of view, on any grid, `[y, x]`.
    """

    times: Tensor
    field_hz: Tensor


def calibration_kspace(
    kspace: Tensor, trajectory: Tensor, size: Sequence[int], off_resonance: OffResonance | None = None
) -> Tensor:
    """K-space at the whole cycles per field of view around its centre, on the scale of the samples.

    Samples on the grid are taken as they are, the mean of those that repeat. For others, the image that fits them is
    found from their density-compensated adjoint by a few steps of weighted least squares, and brought back to k-space.

    Args:
        kspace: `[coil, shot, sample]`.
        trajectory: `[axis, shot, sample]` in cycles per field of view.
        size: points of the result, one per axis.
        off_resonance: what there is of it, for two axes; the result is k-space without it, at the time zero.

    Returns:
        `[coil, *size]`, centred.

    Raises:
        NotFullySampledError: The region has points without a sample near them: within 0.95 cycles per field of view at
            its corners and in the centre, within 0.6 between them.
        ValueError: The shapes do not fit, or the trajectory is not finite.
    """
    size = tuple(size)
    _check(kspace, trajectory, size)
    on_grid = is_whole(trajectory)
    if on_grid:
        trajectory = trajectory.round()
    _require_samples_around(trajectory, size)
    grid = size if on_grid else tuple(n + 2 * MARGIN for n in size)
    inside = _inside(trajectory, grid)
    sampling = sampling_operator(trajectory[:, inside][:, None], grid)
    if off_resonance is None:
        images = _fit(sampling, sampling, kspace[:, inside][:, None])
    else:
        model = _with_field(sampling, off_resonance.times[inside][None], off_resonance.field_hz, kspace.dtype)
        images = _fit(model, sampling, kspace[:, inside][:, None, None])
    return resize_centred(fft_centred(images, range(1, images.ndim)), size)


def _fit(model: Sampling | LinearModel, sampling: Sampling, kspace: Tensor) -> Tensor:
    """Images `[coil, ...]` whose samples are close to those of k-space, all of which weighs the same."""
    weights = pipe_menon(sampling)

    def normal(images: Tensor) -> Tensor:
        return model.adjoint(weights * model.forward(images))

    return conjugate_gradient(normal, model.adjoint(weights * kspace), iterations=ITERATIONS, tolerance=1e-4).image


def _with_field(sampling: Sampling, times: Tensor, field_hz: Tensor, dtype: torch.dtype) -> LinearModel:
    """Of one coil that sees all alike."""
    shape = sampling.shape
    axes = [
        (torch.arange(n, device=field_hz.device) - n // 2) * (wide / n) + wide // 2
        for n, wide in zip(shape, field_hz.shape, strict=True)
    ]
    field = interpolated(field_hz, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))
    functions = LowRank(times, float(field.min()), float(field.max()))
    return LinearModel(Encoding(sampling, functions), torch.ones(1, *shape, dtype=dtype, device=field.device), field)


def _check(kspace: Tensor, trajectory: Tensor, size: tuple[int, ...]) -> None:
    if trajectory.ndim != 3 or len(trajectory) != len(size) or len(size) not in (2, 3):
        raise ValueError(f"expected a trajectory [axis, shot, sample] for {size}, got {list(trajectory.shape)}")
    if kspace.ndim != 3 or kspace.shape[1:] != trajectory.shape[1:]:
        expected = ["coil", *trajectory.shape[1:]]
        raise ValueError(f"expected k-space {expected} as the trajectory, got {list(kspace.shape)}")
    if not torch.isfinite(trajectory).all():
        raise ValueError("the trajectory holds values that are not finite")


def _inside(points: Tensor, size: Sequence[int]) -> Tensor:
    """Which of `[axis, ...]` lie on or between the points of the centred grid."""
    inside = torch.ones_like(points[0], dtype=torch.bool)
    for k, n in zip(points, size, strict=True):
        inside &= (k >= -(n // 2)) & (k <= (n - 1) // 2)
    return inside


def _require_samples_around(trajectory: Tensor, size: tuple[int, ...]) -> None:
    """Refuses a region with grid points that have no sample near enough."""
    axes = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    nearest = cKDTree(trajectory.flatten(1).T.cpu().numpy()).query(points.numpy())[0]
    # A region's corners are few, and windows roll them off.
    corner = (points / (torch.tensor(size) / 2)).norm(dim=-1) > 1
    needed = (points.norm(dim=-1) <= NEEDED_RADIUS) | corner
    missing = float((torch.from_numpy(nearest) > torch.where(needed, LARGEST_GAP, DENSE)).double().mean())
    if missing:
        raise NotFullySampledError(
            f"the central {' x '.join(map(str, size))} points of k-space are not fully sampled: "
            f"{100 * missing:.1f} % of them have no sample near them"
        )
