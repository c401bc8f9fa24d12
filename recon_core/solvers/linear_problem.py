"""What all solvers are given: data, the model that made them, and a scale on which images are of order one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Convention
from recon_core.solvers.conjugate_gradient import conjugate_gradient

_SCALE_ITERATIONS = 10
_SCALE_DAMPING = 0.03  # of the precision of a pixel that is seen alone


@dataclass(frozen=True)
class LinearProblem:
    """y = unit A x + n: find the image x on a scale on which its intensities are of order one.

    The noise n is white, of unit variance per complex sample, as prewhitening leaves it: the negative logarithm of the
    likelihood is `|unit A x - y|^2`, and its gradient in a real channel is that of a precision `2 unit^2 A^H A`. No
    method needs another weight for the data.

    Images are `[sample, slice..., y, x]`; slices are those that model and data have, samples share all of it.

    Args:
        model: A.
        data: A^H y, `[slice..., y, x]`.
        energy: |y|^2, `[slice...]`.
        unit: the physical intensity that counts as one, `[slice...]`.
    """

    model: LinearModel
    data: Tensor
    energy: Tensor
    unit: Tensor

    @staticmethod
    def of(model: LinearModel, kspace: Tensor) -> LinearProblem:
        """With the unit one.

        Args:
            model: A.
            kspace: y, prewhitened: `[slice..., coil, shot, sample]`.

        Raises:
            ValueError: the data do not fit the model, or are not finite.
        """
        if not bool(torch.isfinite(kspace).all()):
            broken = int((~torch.isfinite(kspace)).sum())
            raise ValueError(f"{broken} of {kspace.numel()} samples of k-space are not finite")
        energy = kspace.abs().square().sum((-3, -2, -1))
        return LinearProblem(model, model.adjoint(kspace), energy, torch.ones_like(energy))

    def scaled_for(self, convention: Convention) -> LinearProblem:
        """In units of a prior, estimated from a quick least-squares image.

        Raises:
            ValueError: the data of a slice are zero.
        """
        damping = _SCALE_DAMPING / (2 * (self._unit * self.noise_level) ** 2)
        start = conjugate_gradient(
            lambda x: self.model.normal(x) + damping * x,
            self.data,
            iterations=_SCALE_ITERATIONS,
            tolerance=1e-3,
            system_axes=2,
        )
        return replace(self, unit=convention.unit(start.image))

    @property
    def adjoint(self) -> Tensor:
        """unit A^H y, `[slice..., y, x]`."""
        return self._unit * self.data

    def normal(self, image: Tensor) -> Tensor:
        """unit^2 A^H A x."""
        return self._unit**2 * self.model.normal(image)

    def gradient(self, image: Tensor) -> Tensor:
        """Of |unit A x - y|^2, as d / dRe x + i d / dIm x."""
        return 2 * (self.normal(image) - self.adjoint)

    def misfit(self, image: Tensor) -> Tensor:
        """|unit A x - y|^2 of each image, `[sample, slice...]`; about the number of samples for the true image."""
        inner = (image.conj() * (self.normal(image) - 2 * self.adjoint)).sum((-2, -1)).real
        return inner + self.energy

    def noise(self, count: int, generator: Generator) -> Tensor:
        """unit A^H n of white noise as the data hold it, `[count, slice..., y, x]`: of covariance unit^2 A^H A."""
        coils, shape = self.model.coil_maps.shape[-3], self.model.encoding.sampling.trajectory.shape[1:]
        # One at a time: samples of all coils are large.
        drawn = [
            self.model.adjoint(complex_normal((*self.energy.shape, coils, *shape), self.data, generator))
            for _ in range(count)
        ]
        return self._unit * torch.stack(drawn)

    def tempered(
        self, centre: Tensor, level: float | Tensor, start: Tensor | None, iterations: int, tolerance: float = 1e-4
    ) -> Tensor:
        """Mean of the images given the data, if the prior were a Gaussian about a centre.

        Solves `(unit^2 A^H A + 1 / (2 level^2)) x = unit A^H y + centre / (2 level^2)`.

        Args:
            centre: `[sample, slice..., y, x]`.
            level: its standard deviation per real channel, one or of each pixel.
            start: first image; zero by default.
            iterations: at most so many.
            tolerance: relative residual at which to stop.
        """
        return self.solve(self.adjoint + centre / (2 * level**2), level, start, iterations, tolerance)

    def solve(
        self, rhs: Tensor, level: float | Tensor, start: Tensor | None, iterations: int, tolerance: float
    ) -> Tensor:
        """x of `(unit^2 A^H A + 1 / (2 level^2)) x = rhs`, of each image for itself."""
        return conjugate_gradient(
            lambda x: self.normal(x) + x / (2 * level**2),
            rhs,
            start,
            iterations=iterations,
            tolerance=tolerance,
            system_axes=2,
        ).image

    @property
    def strength(self) -> float:
        """The largest eigenvalue of A^H A over all slices, within about a percent, times the largest unit^2."""
        norm = self.model.norm(Generator(self.data.device).manual_seed(0))
        return norm * float(self.unit.max()) ** 2

    @property
    def noise_level(self) -> Tensor:
        """What the noise of the data alone comes to in the image, standard deviation per real channel.

        Each sample adds `2 unit^2 sum_c |S_c|^2 / pixels` to the precision of a pixel that is seen alone, whatever the
        trajectory and the field: the diagonal of `2 unit^2 A^H A`. Its mean over the pixels is weighted by itself, so
        that those that no coil sees do not count. `[slice..., 1, 1]`; immense where no coil sees anything.
        """
        sampling = self.model.encoding.sampling
        seen = self.model.coil_maps.abs().square().sum(-3)
        tiny = torch.finfo(seen.dtype).tiny
        mean = seen.square().sum((-2, -1)) / seen.sum((-2, -1)).clamp_min(tiny)
        precision = 2 * self.unit**2 * mean * sampling.trajectory[0].numel() / math.prod(sampling.shape)
        return precision.clamp_min(tiny).rsqrt()[..., None, None]

    @property
    def _unit(self) -> Tensor:
        return self.unit[..., None, None]


def complex_normal(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """White noise of unit variance per complex value, half of it in either part."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
