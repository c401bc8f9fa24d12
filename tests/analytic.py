"""Images, coils, trajectories and signals that are known by formula, apart from what is under test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.operators.toeplitz import doubled_grid


def complex_noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positions(n: int) -> Tensor:
    """Of pixels, in fields of view."""
    return (torch.arange(n, dtype=torch.float64) - n // 2) / n


def direct_sum(image: Tensor, trajectory: Tensor) -> Tensor:
    """The signal by its definition, in double precision: from `[..., *shape]` to `[..., shot, sample]`."""
    shape = image.shape[image.ndim - len(trajectory) :]
    points = trajectory.double().flatten(1)
    signal = image.to(torch.complex128)[..., None] / math.sqrt(math.prod(shape))
    for k, n in zip(points.flip(0), reversed(shape), strict=True):
        wave = torch.exp(-2j * math.pi * positions(n)[:, None] * k)
        # The last image axis is summed first; samples stand behind it from then on.
        signal = torch.einsum("...ns,ns->...s", signal, wave) if signal.shape[-1] > 1 else signal[..., 0] @ wave
    return signal.reshape(*signal.shape[:-1], *trajectory.shape[1:])


class DirectSampling:
    """A sampling operator (see `recon_core.operators.sampling`) by its definition, exact to rounding in double."""

    def __init__(self, trajectory: Tensor, shape: Sequence[int]) -> None:
        self.trajectory, self.shape = trajectory.double(), tuple(shape)
        pixels = torch.eye(math.prod(self.shape), dtype=torch.complex128).view(-1, *self.shape)
        self.matrix = direct_sum(pixels, self.trajectory).flatten(1)  # [pixel, sample]
        self.nbytes = self.matrix.nbytes

    def forward(self, image: Tensor) -> Tensor:
        samples = image.flatten(-len(self.shape)) @ self.matrix
        return samples.view(*samples.shape[:-1], *self.trajectory.shape[1:])

    def adjoint(self, kspace: Tensor) -> Tensor:
        image = kspace.flatten(-2) @ self.matrix.mH
        return image.view(*image.shape[:-1], *self.shape)

    def transfer_functions(self, weights: Tensor) -> Tensor:
        return doubled_grid(self, weights)


def random_trajectory(shape: Sequence[int], shots: int = 3, samples: int = 50, seed: int = 0) -> Tensor:
    """Anywhere in k-space."""
    draw = torch.rand(len(shape), shots, samples, generator=torch.Generator().manual_seed(seed))
    return (draw - 0.5) * torch.tensor(shape)[:, None, None]


def grid_trajectory(shape: Sequence[int]) -> Tensor:
    """Every point of the FFT grid once; a shot for each point of the first axis."""
    axes = [torch.arange(n, dtype=torch.float32) - n // 2 for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return points.reshape(len(shape), shape[0], -1)


def radial_trajectory(n: int, spokes: int, samples: int) -> Tensor:
    angle = math.pi * torch.arange(spokes)[:, None] / spokes
    k = torch.linspace(-n / 2, n / 2, samples)
    return torch.stack([k * torch.sin(angle), k * torch.cos(angle)])


def spiral_trajectory(n: int, shots: int, samples: int, turns: float | None = None, power: float = 1.0) -> Tensor:
    """Archimedean by default, fully sampled; the centre is denser for a higher power."""
    t = torch.arange(samples) / samples
    angle = 2 * math.pi * ((turns or n / 2 / shots) * t + torch.arange(shots)[:, None] / shots)
    return n / 2 * t**power * torch.stack([torch.sin(angle), torch.cos(angle)])


def smooth_head(n: int) -> Tensor:
    """Soft ellipses with a smooth phase, `[n, n]`."""
    y, x = torch.meshgrid(positions(n), positions(n), indexing="ij")
    image = torch.zeros(n, n, dtype=torch.complex128)
    for value, cy, cx, ry, rx in ((1, 0, 0, 0.42, 0.35), (-0.4, 0.05, 0.1, 0.15, 0.1), (0.5, -0.15, -0.1, 0.08, 0.1)):
        image += value * torch.sigmoid(8 - 8 * ((y - cy) / ry) ** 2 - 8 * ((x - cx) / rx) ** 2)
    return image * torch.exp(2j * math.pi * (0.7 * x + y**2))


def ring_of_coils(n: int, coils: int) -> Tensor:
    """Gaussian sensitivities around the head, each with its own phase ramp; root sum of squares one."""
    y, x = torch.meshgrid(positions(n), positions(n), indexing="ij")
    maps = []
    for angle in (2 * math.pi * c / coils for c in range(coils)):
        near = torch.exp(-((y - 0.75 * math.sin(angle)) ** 2 + (x - 0.75 * math.cos(angle)) ** 2) / (2 * 0.45**2))
        ramp = 0.3 * (x * math.cos(angle + 1) + y * math.sin(angle + 1)) + angle**2 / 9
        maps.append(near * torch.exp(2j * math.pi * ramp))
    stack = torch.stack(maps)
    return stack / stack.abs().square().sum(0).sqrt()


def relative(difference: Tensor, reference: Tensor) -> float:
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(reference))
