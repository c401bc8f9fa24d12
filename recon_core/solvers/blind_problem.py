"""What solvers are given that look for the image and the field map together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from recon_core.field_basis import FieldBasis
from recon_core.fourier import fft_centred
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Convention
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate


@dataclass(frozen=True)
class BlindProblem:
    """y = unit A(psi) x + n with psi = B theta: find the image x and the field psi of one slice, on a prior's scale.

    The noise is white, of unit variance per complex sample, as in `LinearProblem`. The times of the encoding should
    count from when the centre of k-space is visited: then the phase of the image follows from samples that the field
    has hardly touched, and a change of the field leaves it as it is.

    Args:
        model: A with a field of zero.
        data_images: S^H E^H y, `[term, y, x]`; samples are not visited again.
        energy: |y|^2, `[]`.
        samples: how many of them there are, of all coils.
        unit: the physical intensity that counts as one, `[]`.
        basis: B, and how large the coefficients theta may be expected to be.
    """

    model: LinearModel
    data_images: Tensor
    energy: Tensor
    samples: int
    unit: Tensor
    basis: FieldBasis

    @staticmethod
    def of(encoding: Encoding, coil_maps: Tensor, kspace: Tensor, basis: FieldBasis) -> BlindProblem:
        """With the unit one.

        Args:
            encoding: with functions of time, for all fields that may be met; others are brought back into its range.
            coil_maps: `[coil, y, x]`.
            kspace: y, prewhitened: `[coil, shot, sample]`.
            basis: of the field, on the grid of the maps.

        Raises:
            ValueError: the encoding knows no times, the data or the basis do not fit, or the data are not finite.
        """
        if encoding.functions is None:
            raise ValueError("a field is to be found, but the encoding has no functions of time")
        if basis.functions.shape[1:] != coil_maps.shape[1:]:
            raise ValueError(
                f"expected a basis of fields on the grid {list(coil_maps.shape[1:])} of the coil maps, got "
                f"{list(basis.functions.shape[1:])}"
            )
        if not bool(torch.isfinite(kspace).all()):
            broken = int((~torch.isfinite(kspace)).sum())
            raise ValueError(f"{broken} of {kspace.numel()} samples of k-space are not finite")
        model = LinearModel(encoding, coil_maps, torch.zeros_like(coil_maps[0].real))
        energy = kspace.abs().square().sum()
        return BlindProblem(model, model.data_images(kspace), energy, kspace.numel(), torch.ones_like(energy), basis)

    def scaled_for(self, convention: Convention, coefficients: Tensor) -> BlindProblem:
        """In units of a prior, from a quick least-squares image in the field of the coefficients `[function]`.

        Raises:
            ValueError: the data are zero.
        """
        return replace(self, unit=self.given(coefficients).scaled_for(convention).unit)

    def field(self, coefficients: Tensor) -> Tensor:
        """psi in Hz within the range of the encoding, `[..., y, x]` of theta `[..., function]`."""
        functions = self.model.encoding.functions
        assert functions is not None
        return self.basis.field(coefficients).clamp(functions.low_hz, functions.high_hz)

    def given(self, coefficients: Tensor) -> LinearProblem:
        """What is left to be found where the field is known: the image. Leading axes count as slices."""
        model = self.model.with_field(self.field(coefficients))
        lead = coefficients.shape[:-1]
        return LinearProblem(model, model.combine(self.data_images), self.energy.expand(lead), self.unit.expand(lead))

    @cached_property
    def density(self) -> Tensor:
        """About the diagonal of `F E^H E F^H` without a field: how densely each point of k-space is sampled, `[y, x]`.

        After T. Chan (SIAM J Sci Stat Comput 9:766, 1988), with the half of the point spread function that fits the
        grid: 15 to 35 % off where samples are dense in the centre, which is enough to make a system well conditioned.
        """
        shape = self.data_images.shape[-2:]
        point = torch.zeros_like(self.data_images[0])
        point[tuple(n // 2 for n in shape)] = 1
        alone = LinearModel(self.model.encoding, torch.ones_like(point)[None], torch.zeros_like(point.real))
        y, x = (1 - (torch.arange(n, device=point.device) - n // 2).abs() / n for n in shape)
        spread = alone.normal(point) * y[:, None] * x
        density: Tensor = fft_centred(spread, (-2, -1)).real.clamp_min(0) * point.numel() ** 0.5
        return density


@dataclass(frozen=True)
class BlindEstimate:
    """What a solver found.

    Attributes:
        image: on the scale of its problem, `[y, x]`, with the deviation among the samples.
        unit: of the image, `[]`.
        field_hz: psi, `[y, x]`.
        field_deviation_hz: its standard deviation, `[y, x]`; None from methods that know none.
        misfits: `|unit A x - y|^2` per sample after each step that moved the field; about one where all is well.
    """

    image: Estimate
    unit: Tensor
    field_hz: Tensor
    field_deviation_hz: Tensor | None
    misfits: list[float]
