"""What solvers are given that look for the image and the field map together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from recon_core.coil_errors import CoilErrors
from recon_core.field_basis import FieldBasis
from recon_core.fourier import fft_centred
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Convention
from recon_core.sample_times import visiting_times
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate


class Whereabouts(NamedTuple):
    """All unknowns but the image.

    Attributes:
        field: theta, `[function]`.
        coils: q, complex `[coil, function]`.
    """

    field: Tensor
    coils: Tensor


@dataclass(frozen=True)
class BlindProblem:
    """y_c = unit E S_c C(psi) x + n with psi = B theta and S = S_0 + sum_k q_k phi_k: find the image x, the field psi
    and, unless they are known, the coil maps S of one slice, on a prior's scale.

    The noise is white, of unit variance per complex sample, as in `LinearProblem`. The times of the encoding should
    count from when the centre of k-space is visited: then the phase of the image follows from samples that the field
    has hardly touched, and a change of the field leaves it as it is.

    Args:
        uncombined: E C with one coil that sees everything alike, and a field of zero.
        coil_maps: S_0, `[coil, y, x]`.
        data_images: E^H y of each coil, `[coil, term, y, x]`; samples are not visited again.
        energy: |y|^2, `[]`.
        samples: how many of them there are, of all coils.
        unit: the physical intensity that counts as one, `[]`.
        times: when each point of k-space is visited, in seconds, `[y, x]`.
        basis: B, and how large the coefficients theta may be expected to be.
        coil_errors: phi, and how large the coefficients q may be expected to be; none of maps that are known.
    """

    uncombined: LinearModel
    coil_maps: Tensor
    data_images: Tensor
    energy: Tensor
    samples: int
    unit: Tensor
    times: Tensor
    basis: FieldBasis
    coil_errors: CoilErrors

    @staticmethod
    def of(
        encoding: Encoding,
        coil_maps: Tensor,
        kspace: Tensor,
        times: Tensor,
        basis: FieldBasis,
        coil_errors: CoilErrors | None = None,
    ) -> BlindProblem:
        """With the unit one.

        Args:
            encoding: with functions of time, for all fields that may be met; others are brought back into its range.
            coil_maps: `[coil, y, x]`.
            kspace: y, prewhitened: `[coil, shot, sample]`.
            times: of the samples, in seconds, `[shot, sample]`.
            basis: of the field, on the grid of the maps.
            coil_errors: of the maps; none by default.

        Raises:
            ValueError: the encoding knows no times, the data or the basis do not fit, or the data are not finite.
        """
        shape = coil_maps.shape[1:]
        if encoding.functions is None:
            raise ValueError("a field is to be found, but the encoding has no functions of time")
        if basis.functions.shape[1:] != shape:
            raise ValueError(
                f"expected a basis of fields on the grid {list(shape)} of the coil maps, got "
                f"{list(basis.functions.shape[1:])}"
            )
        if not bool(torch.isfinite(kspace).all()):
            broken = int((~torch.isfinite(kspace)).sum())
            raise ValueError(f"{broken} of {kspace.numel()} samples of k-space are not finite")
        alike = torch.ones_like(coil_maps[:1])
        uncombined = LinearModel(encoding, alike, torch.zeros_like(coil_maps[0].real))
        energy = kspace.abs().square().sum()
        return BlindProblem(
            uncombined,
            coil_maps,
            uncombined.data_images(kspace[:, None]),
            energy,
            kspace.numel(),
            torch.ones_like(energy),
            visiting_times(encoding.sampling.trajectory, times, shape).to(coil_maps.real),
            basis,
            coil_errors or CoilErrors.none(shape).to(coil_maps.device),
        )

    @property
    def encoding(self) -> Encoding:
        """E."""
        return self.uncombined.encoding

    @property
    def start(self) -> Whereabouts:
        """No field, and the maps as they are."""
        maps, known = self.coil_maps, self.coil_errors.deviation
        return Whereabouts(torch.zeros_like(self.basis.deviation_hz), maps.new_zeros(len(maps), len(known)))

    def scaled_for(self, convention: Convention, at: Whereabouts) -> BlindProblem:
        """In units of a prior, from a quick least-squares image there.

        Raises:
            ValueError: the data are zero.
        """
        return replace(self, unit=self.given(at).scaled_for(convention).unit)

    @property
    def range_hz(self) -> tuple[float, float]:
        """Of the fields that the encoding knows."""
        functions = self.encoding.functions
        assert functions is not None
        return functions.low_hz, functions.high_hz

    def field(self, coefficients: Tensor) -> Tensor:
        """psi in Hz within the range of the encoding, `[..., y, x]` of theta `[..., function]`."""
        return self.basis.field(coefficients).clamp(*self.range_hz)

    def in_range(self, coefficients: Tensor) -> Tensor:
        """Where psi is what theta `[function]` makes it, and changes with it, bool `[y, x]`."""
        field_hz, (low_hz, high_hz) = self.basis.field(coefficients), self.range_hz
        return (field_hz >= low_hz) & (field_hz <= high_hz)

    def maps(self, coils: Tensor) -> Tensor:
        """S of q, `[coil, y, x]`."""
        return self.coil_maps + self.coil_errors.maps(coils)

    def given(self, at: Whereabouts) -> LinearProblem:
        """What is left to be found where field and maps are known: the image."""
        maps = self.maps(at.coils)
        model = LinearModel(self.encoding, maps, self.field(at.field))
        data = model.combine((maps.conj()[:, None] * self.data_images).sum(0))
        return LinearProblem(model, data, self.energy, self.unit)

    def with_known_maps(self, coils: Tensor) -> BlindProblem:
        """The maps of q, with unit norm, taken for right: what they lose or gain is the image's.

        Where there were none, outside the object perhaps, there are none.
        """
        maps = self.maps(coils) * self.coil_maps.abs().sum(0).gt(0)
        norm = maps.abs().square().sum(0).sqrt()
        maps = maps / torch.where(norm > 0, norm, 1)
        return replace(self, coil_maps=maps, coil_errors=CoilErrors.none(norm.shape).to(norm.device))

    @cached_property
    def density(self) -> Tensor:
        """About the diagonal of `F E^H E F^H` without a field: how densely each point of k-space is sampled, `[y, x]`.

        After T. Chan (SIAM J Sci Stat Comput 9:766, 1988), with the half of the point spread function that fits the
        grid: 15 to 35 % off where samples are dense in the centre, which is enough to make a system well conditioned.
        """
        shape = self.data_images.shape[-2:]
        point = torch.zeros_like(self.data_images[0, 0])
        point[tuple(n // 2 for n in shape)] = 1
        y, x = (1 - (torch.arange(n, device=point.device) - n // 2).abs() / n for n in shape)
        spread = self.uncombined.normal(point) * y[:, None] * x
        density: Tensor = fft_centred(spread, (-2, -1)).real.clamp_min(0) * point.numel() ** 0.5
        return density


@dataclass(frozen=True)
class BlindEstimate:
    """What a solver found.

    Attributes:
        image: on the scale of its problem, `[y, x]`, with a deviation where several samples were drawn.
        unit: of the image, `[]`.
        field_hz: psi, `[y, x]`.
        field_deviation_hz: its standard deviation, `[y, x]`; None from methods that know none.
        coil_maps: with which the image was found, `[coil, y, x]`, of unit norm where they were sought too.
        misfits: `|unit A x - y|^2` per sample after each step that moved the field; about one where all is well.
    """

    image: Estimate
    unit: Tensor
    field_hz: Tensor
    field_deviation_hz: Tensor | None
    coil_maps: Tensor
    misfits: list[float]
