"""What solvers are given that look for the image and the coil maps together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Generator, Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.density import pipe_menon
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import Sampling
from recon_core.priors.prior import Convention
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate

_CENTRE = 5.0
"""Standard deviation in cycles per field of view of the Gaussian that cuts out what the first coil maps are made of."""


@dataclass(frozen=True)
class JointProblem:
    """y_c = unit E (s_c x) + n: find the image x and the coil maps s (paper 003, eq. 7), on the scale of a prior.

    The noise n is white, of unit variance per complex sample, so that `sum_c |unit E (s_c x) - y_c|^2` is the negative
    logarithm of the likelihood, whatever the coils.

    x and s are known up to a factor in each pixel, x f and s / f, as far as both priors allow. Its magnitude is fixed
    by maps whose root sum of squares is one, so that x is on the scale that priors of combined images learnt; its phase
    by maps that have, summed over coils, the phase of the first ones.

    Images are `[sample, slice..., y, x]`, maps `[sample, slice..., coil, y, x]`: each sample has maps of its own.

    Args:
        single: E, with the field if there is one, as the model of one coil that sees all alike.
        data: E^H y_c of each coil, `[slice..., coil, y, x]`; samples are not visited again.
        energy: |y|^2, `[slice...]`.
        unit: the physical intensity that counts as one, `[slice...]`.
        first_maps: to begin with, `[slice..., coil, y, x]`, of unit norm.
    """

    single: LinearModel
    data: Tensor
    energy: Tensor
    unit: Tensor
    first_maps: Tensor

    @staticmethod
    def of(
        encoding: Encoding, kspace: Tensor, field_hz: Tensor | None = None, first_maps: Tensor | None = None
    ) -> JointProblem:
        """With the unit one.

        Args:
            encoding: E.
            kspace: y, prewhitened: `[slice..., coil, shot, sample]`.
            field_hz: off-resonance, `[slice..., y, x]`, where the encoding has functions of time.
            first_maps: to begin with, `[slice..., coil, y, x]`; made of the centre of k-space by default.

        Raises:
            ValueError: the data or maps do not fit the encoding, or are not finite.
        """
        if not bool(torch.isfinite(kspace).all()):
            broken = int((~torch.isfinite(kspace)).sum())
            raise ValueError(f"{broken} of {kspace.numel()} samples of k-space are not finite")
        shape = encoding.sampling.shape
        ones = torch.ones(1, *shape, dtype=kspace.dtype, device=kspace.device)
        single = LinearModel(encoding, ones, None if field_hz is None else field_hz.unsqueeze(-3))
        data = single.adjoint(kspace.unsqueeze(-3))
        energy = kspace.abs().square().sum((-3, -2, -1))
        if first_maps is None:
            first_maps = low_resolution_maps(encoding.sampling, kspace)
        elif first_maps.shape != data.shape:
            raise ValueError(f"expected first maps {list(data.shape)}, got {list(first_maps.shape)}")
        elif not bool(torch.isfinite(first_maps).all()):
            broken = int((~torch.isfinite(first_maps)).sum())
            raise ValueError(f"{broken} of {first_maps.numel()} values of the first maps are not finite")
        return JointProblem(single, data, energy, torch.ones_like(energy), normalised(first_maps))

    def scaled_for(self, convention: Convention) -> JointProblem:
        """In units of a prior, estimated from a quick least-squares image with the first maps.

        Raises:
            ValueError: the data of a slice are zero.
        """
        return replace(self, unit=self.given(self.first_maps).scaled_for(convention).unit)

    def given(self, coil_maps: Tensor) -> LinearProblem:
        """What is left to be found where the maps are known: the image.

        Args:
            coil_maps: `[..., coil, y, x]`, with or without samples.
        """
        field_hz = self.single.field_hz
        model = LinearModel(self.single.encoding, coil_maps, None if field_hz is None else field_hz.squeeze(-3))
        return LinearProblem(model, (coil_maps.conj() * self.data).sum(-3), self.energy, self.unit)

    def normal(self, coil_images: Tensor) -> Tensor:
        """unit^2 E^H E of each coil image `[..., coil, y, x]`."""
        return self.unit[..., None, None, None] ** 2 * self.single.normal(coil_images)

    def residual(self, image: Tensor, coil_maps: Tensor) -> Tensor:
        """unit E^H (unit E (s_c x) - y_c), `[..., coil, y, x]`.

        Twice `sum_c conj(s_c)` times it is the gradient of `sum_c |unit E (s_c x) - y_c|^2` for the image, as
        d / dRe x + i d / dIm x, and twice `conj(x)` times it the one for the maps (paper 003, eqs. 10 and 12, which
        print the negative gradients without their sign, and eq. 12 without the conjugate).
        """
        return self.normal(coil_maps * image.unsqueeze(-3)) - self.unit[..., None, None, None] * self.data

    def misfit(self, image: Tensor, coil_maps: Tensor) -> Tensor:
        """sum_c |unit E (s_c x) - y_c|^2 of each image, `[sample, slice...]`."""
        coil_images = coil_maps * image.unsqueeze(-3)
        both = self.residual(image, coil_maps) - self.unit[..., None, None, None] * self.data
        return (coil_images.conj() * both).sum((-3, -2, -1)).real + self.energy

    def proximal_step(self, penalty: Smoothness, image: Tensor, wide: Tensor) -> Tensor:
        """One proximal gradient step on the misfit and the penalty of the maps, as long as one over the curvature.

        Args:
            penalty: of the maps.
            image: `[sample, slice..., y, x]`.
            wide: maps on the wide grid of the penalty, `[sample, slice..., coil, y, x]`.
        """
        x = image.unsqueeze(-3)
        brightest = x.abs().square().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        length = 1 / (2 * self.strength.unsqueeze(-3) * brightest)
        gradient = 2 * x.conj() * self.residual(image, penalty.cropped(wide))
        return penalty.proximal(wide - length * penalty.padded(gradient), length)

    @cached_property
    def strength(self) -> Tensor:
        """The largest eigenvalue of unit^2 E^H E, within about a percent, `[slice..., 1, 1]`."""
        norm = self.single.norm(Generator(self.data.device).manual_seed(0))
        return norm * self.unit[..., None, None] ** 2

    @cached_property
    def noise_level(self) -> Tensor:
        """See `LinearProblem.noise_level`; maps do not matter, since their norm is one. `[slice..., 1, 1]`."""
        return self.given(self.first_maps).noise_level

    def fixed(self, image: Tensor, coil_maps: Tensor) -> tuple[Tensor, Tensor]:
        """The same coil images, with maps of unit norm and, relative to the first maps, no phase."""
        turn = (coil_maps * self.first_maps.conj()).sum(-3).angle()
        factor = torch.polar(_norm(coil_maps), turn)
        return image * factor, normalised(coil_maps) * torch.exp(-1j * turn).unsqueeze(-3)


@dataclass(frozen=True)
class JointEstimate(Estimate):
    """What a solver found, on the scale of its problem.

    Attributes:
        image: complex `[slice..., y, x]`, the mean of all samples.
        coil_maps: complex `[slice..., coil, y, x]` of unit norm, the mean of all samples.
        deviation, steps, planned: see `Estimate`.
    """

    coil_maps: Tensor

    @staticmethod
    def of_both(images: Tensor, coil_maps: Tensor, steps: int, planned: int) -> JointEstimate:
        """Of samples `[sample, slice..., y, x]` and `[sample, slice..., coil, y, x]` from `JointProblem.fixed`."""
        found = Estimate.of(images, steps, planned)
        return JointEstimate(found.image, found.deviation, steps, planned, normalised(coil_maps.mean(0)))


def low_resolution_maps(sampling: Sampling, kspace: Tensor) -> Tensor:
    """Coil images of the centre of k-space, divided by their root sum of squares.

    A Gaussian cuts the centre out, because it leaves no ripples, and needs no fully sampled region.

    Args:
        sampling: of the trajectory.
        kspace: `[..., coil, shot, sample]`.

    Returns:
        `[..., coil, y, x]`.
    """
    window = torch.exp(-sampling.trajectory.square().sum(0) / (2 * _CENTRE**2))
    return normalised(sampling.adjoint(pipe_menon(sampling) * window * kspace))


def normalised(coil_maps: Tensor) -> Tensor:
    """Of unit root sum of squares in every pixel; zero where no coil sees anything."""
    return coil_maps / _norm(coil_maps).clamp_min(torch.finfo(coil_maps.dtype).tiny).unsqueeze(-3)


def _norm(coil_maps: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(coil_maps, dim=-3)
    return norm
