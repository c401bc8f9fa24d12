"""From an image to its k-space samples along a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from recon_core.operators.cartesian import CartesianSampling, is_on_grid
from recon_core.operators.nufft import Nufft


class Sampling(Protocol):
    """Samples of the orthonormal Fourier transform of an image.

    With r = (index - N // 2) / N, the signal at a point k is `sum_r image(r) exp(-2 pi i k r) / sqrt(prod N)`.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: (y, x) or (z, y, x)."""

    @property
    def trajectory(self) -> Tensor:
        """`[axis, shot, sample]` in cycles per field of view, axes in the order of `shape`."""

    def forward(self, image: Tensor) -> Tensor:
        """From `[..., *shape]` to `[..., shot, sample]`."""

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[..., shot, sample]` to `[..., *shape]`, without any density compensation."""

    def transfer_functions(self, weights: Tensor) -> Tensor:
        """Of `adjoint(weights * forward(image))` for real weights `[product, shot, sample]`.

        Returns:
            Real `[phase, product, *shape]`, as `ToeplitzKernels` takes them.
        """

    @property
    def nbytes(self) -> int:
        """Memory held."""


def sampling_operator(trajectory: Tensor, shape: Sequence[int]) -> Sampling:
    """The operator that suits a trajectory: an FFT when all points lie on its grid, else a NUFFT.

    Args:
        trajectory: `[axis, shot, sample]` in cycles per field of view, axes in the order of `shape`.
        shape: of an image, (y, x) or (z, y, x).

    Raises:
        ValueError: The shapes do not fit, or a point is not finite or more than half a sample beyond N / 2.
    """
    shape = tuple(int(n) for n in shape)
    _check(trajectory, shape)
    kind = CartesianSampling if is_on_grid(trajectory, shape) else Nufft
    return kind(trajectory, shape)


def _check(trajectory: Tensor, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"expected an image shape (y, x) or (z, y, x), got {shape}")
    if trajectory.ndim != 3 or trajectory.shape[0] != len(shape) or not trajectory.numel():
        raise ValueError(f"expected a trajectory [{len(shape)}, shot, sample], got {list(trajectory.shape)}")
    if not torch.isfinite(trajectory).all():
        raise ValueError("the trajectory holds values that are not finite")
    for axis, n in enumerate(shape):
        reach = trajectory[axis].abs().max().item()
        if reach > (n + 1) / 2:
            raise ValueError(
                f"the trajectory reaches {reach:g} cycles per field of view on axis {axis}, "
                f"but an image of {n} pixels holds only {n / 2:g}"
            )
