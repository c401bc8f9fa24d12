"""Image and field map from the same data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gadgets.coil_maps import CoilMaps
from gadgets.frame import Frame, Samples, SeriesImage
from gadgets.gadget import Session
from gadgets.imaging_model import encoding_of, encoding_with_field, moment_of_the_centre
from gadgets.prior_solver import PriorSolver, prior_property
from gadgets.property import choice, integer, real
from recon_core.field_basis import FieldBasis, polynomial_basis, smooth_basis
from recon_core.halved_grid import HalvedGrid
from recon_core.object_mask import dilated, object_mask
from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.blind_gauss_newton import Stage, alone, blind_gauss_newton, coarse, fine
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem
from recon_core.solvers.blind_red_diff import blind_red_diff
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run

GAUSS_NEWTON, RED_DIFF = "gauss_newton", "red_diff"
SMOOTH, POLYNOMIAL = "smooth", "polynomial"

OUTLINE = 0.1
"""Of the brightest pixels of a first image, what belongs to the object: blur spreads some around it."""

MARGIN_MM = 4.0
"""By which the field is looked for beyond the outline."""

AT_THE_LIMIT = 0.002
"""Part of the object whose field may be at the limit without a word."""


class BlindSolver(PriorSolver):
    """Finds the image and the field map together, where nobody measured the field or it has changed since.

    The field must be seen in the data: readouts of several milliseconds, and coils or a prior that tell an image from
    one that is blurred; spirals are what it is made for. A map from an earlier gadget is where joint steps begin;
    blind RED-diff begins without. The field map leaves as the series `field_map`, with its standard deviation as
    `field_deviation`, after the image, and later gadgets get it. Where the data have no use for a field, it is as the
    basis makes it likely.

    Coil maps that earlier gadgets made of the same spiral hold the blur of its centre; `recalibrations` makes them anew
    with the field so far, as CoilMaps does by default, and later gadgets get them.

    The image has its phase at the moment when the centre of k-space is visited, not at the excitation, and its
    deviation does not hold that of the field.
    """

    method = choice(
        GAUSS_NEWTON,
        (GAUSS_NEWTON, RED_DIFF),
        "image and field in joint steps from coarse to fine, or in turns as blind RED-diff was published (Algorithm 1, "
        "with a polynomial field), which is far slower",
    )
    prior = prior_property("head_unet_large")
    fields = choice(
        SMOOTH,
        (SMOOTH, POLYNOMIAL),
        "what a field may look like: sums of the principal functions of smooth fields, as heads have them, or "
        "polynomials",
    )
    order = integer(5, "of polynomials", low=1, high=9)
    limit = real(250.0, "fields are looked for between plus and minus this", unit="Hz", low=10.0, high=2000.0)
    recalibrations = integer(0, "times that the coil maps are made again, with the field found so far", low=0, high=10)
    steps = integer(1000, "of the method red_diff", low=1, high=100000)
    slices_per_batch = integer(1, "slices that are solved at once: always one", low=1, high=1)

    def open(self, session: Session) -> None:
        """Reads the prior.

        Raises:
            ValueError: a property is set that has no effect, or the prior cannot be read.
        """
        if self.method == RED_DIFF:
            self.require_effect(f"with method {RED_DIFF}", "fields", "recalibrations")
        else:
            self.require_effect(f"with method {self.method}", "steps")
        if not self._polynomial:
            self.require_effect(f"with fields {self.fields}", "order")
        super().open(session)
        self._blind: BlindEstimate | None = None

    @property
    def _what(self) -> str:
        fields = f"polynomial fields of order {self.order}" if self._polynomial else "smooth fields"
        drawn = f"{self._draws} sample{'s' * (self._draws > 1)}"
        return f"{self.method} with {self._provenance}, {fields} within {self.limit:g} Hz, {drawn}"

    @property
    def _draws(self) -> int:
        return 1 if self.method == RED_DIFF else self.samples

    @property
    def _polynomial(self) -> bool:
        return self.method == RED_DIFF or self.fields == POLYNOMIAL

    def _results(self, frames: Sequence[Frame]) -> Iterator[object]:
        for item in super()._results(frames):
            yield item
            if isinstance(item, SeriesImage) and item.kind == "image" and self._blind is not None:
                yield SeriesImage("field_map", self._blind.field_hz, item.frame)
                if self._blind.field_deviation_hz is not None:
                    yield SeriesImage("field_deviation", self._blind.field_deviation_hz, item.frame)

    def _nothing(self, frame: Frame) -> tuple[Tensor, Tensor | None]:
        self._blind = None
        return super()._nothing(frame)

    def _solved(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor | None]:
        solved = super()._solved(frames)
        assert self._blind is not None
        for frame in frames:
            frame.field_map = self._blind.field_hz
            frame.coil_maps = frame.coil_maps if self._coil_maps is None else self._coil_maps
            frame.history += self._notes
            frame.history.append(f"BlindSolver: {_described(self._blind)}")
        self._tell_of_the_limit(frames[0].label, self._blind.field_hz)
        return solved

    def _tell_of_the_limit(self, label: str, field_hz: Tensor) -> None:
        beyond = float((field_hz[self._mask].abs() > 0.99 * self.limit).double().mean())
        if beyond > AT_THE_LIMIT:
            self.session.tell(
                f"{label}: the field is at the limit of {self.limit:g} Hz in {beyond:.1%} of the object, where it may "
                "be larger; try a larger BlindSolver.limit"
            )

    def _found(self, batch: Frame, kspace: Tensor, run: Run) -> tuple[Estimate, Tensor]:
        assert batch.coil_maps is not None
        self._coil_maps: Tensor | None = None
        self._notes: list[str] = []
        frame = replace(
            batch,
            samples=Samples(kspace[0], batch.samples.trajectory),
            times=batch.times - moment_of_the_centre(batch),
            coil_maps=batch.coil_maps[0],
            field_map=None,
        )
        basis = self._basis(frame)
        self._mask = basis.mask
        start = torch.zeros_like(basis.deviation_hz)
        if batch.field_map is not None:
            start = _fitted(basis, batch.field_map[0])
        if self.method == RED_DIFF:
            problem = self._problem_of(frame, basis).scaled_for(self._prior.convention, start)
            self._blind = blind_red_diff(problem, self._prior, run, steps=self.steps, order=self.order)
        else:
            self._blind = blind_gauss_newton(self._stages(frame, basis), self._prior, run, start)
        found = self._blind.image
        deviation = None if found.deviation is None else found.deviation[None]
        return replace(found, image=found.image[None], deviation=deviation), self._blind.unit[None]

    def _basis(self, frame: Frame) -> FieldBasis:
        """On the grid of the frame, within the outline of what a first image shows."""
        assert frame.coil_maps is not None
        model = LinearModel(encoding_of(frame, self.session), frame.coil_maps)
        problem = LinearProblem.of(model, frame.samples.kspace)
        blurred = conjugate_gradient(problem.normal, problem.adjoint, iterations=10, tolerance=1e-2).image
        fov_mm = frame.space.encoded_fov_mm[1:]
        mask = dilated(
            object_mask(blurred.abs()[None], OUTLINE)[0],
            [MARGIN_MM * n / mm for n, mm in zip(blurred.shape, fov_mm, strict=True)],
        )
        return polynomial_basis(mask, self.order) if self._polynomial else smooth_basis(mask, fov_mm)

    def _stages(self, frame: Frame, basis: FieldBasis) -> list[Stage]:
        """From coarse to fine; where coil maps are made again, once before each fine stage."""
        half = _halved(frame)
        if half is None:
            first = alone(lambda _: self._problem_of(frame, basis))
        else:
            early = self._problem_of(half, basis.halved)
            first = coarse(lambda _: early)

        def again(coefficients: Tensor) -> BlindProblem:
            field = basis.field(coefficients).clamp(-self.limit, self.limit)
            self._coil_maps, how = CoilMaps().maps(replace(frame, field_map=field))
            self._notes.append(f"BlindSolver: coil maps made again, {how}")
            return self._problem_of(replace(frame, coil_maps=self._coil_maps), basis)

        if self._recalibrated(frame):
            return [first, *(fine(again) for _ in range(self.recalibrations))]
        return [first] if half is None else [first, fine(lambda _: self._problem_of(frame, basis))]

    def _recalibrated(self, frame: Frame) -> bool:
        """Whether coil maps are made again; says why not where that was asked for."""
        if not self.recalibrations:
            return False
        if frame.calibration or len(frame.samples.kspace) == 1:
            what = (
                "a single coil" if len(frame.samples.kspace) == 1 else "calibration lines, which no field has blurred"
            )
            self._notes.append(f"BlindSolver: coil maps stay as they are, there is {what}")
            return False
        return True

    def _problem_of(self, frame: Frame, basis: FieldBasis) -> BlindProblem:
        assert frame.coil_maps is not None
        encoding = encoding_with_field(frame, self.session, -self.limit, self.limit, self.off_resonance_error)
        return BlindProblem.of(encoding, frame.coil_maps, frame.samples.kspace, basis)


def _described(found: BlindEstimate) -> str:
    low, high = (float(x) for x in found.field_hz.aminmax())
    course = ", ".join(f"{misfit:.3f}" for misfit in found.misfits[:: max(len(found.misfits) // 6, 1)])
    return f"field from {low:.0f} to {high:.0f} Hz; misfit per sample {course}, at last {found.misfits[-1]:.3f}"


def _fitted(basis: FieldBasis, field_map: Tensor) -> Tensor:
    if field_map.shape != basis.mask.shape:
        raise ValueError(
            f"expected a field map {list(basis.mask.shape)} on the grid of the image, got {list(field_map.shape)}"
        )
    if not torch.isfinite(field_map).all():
        raise ValueError("the field map holds values that are not finite")
    return basis.fit(field_map)


def _halved(frame: Frame) -> Frame | None:
    """The frame on pixels of twice the size, with those samples that lie on such a grid; None where these are few."""
    grid = HalvedGrid.of(frame.samples.trajectory, frame.space.shape)
    if grid is None:
        return None
    assert frame.coil_maps is not None
    y, x = grid.pixels
    return replace(
        frame,
        samples=Samples(frame.samples.kspace[..., grid.readout], grid.trajectory),
        times=frame.times[:, grid.readout].contiguous(),
        coil_maps=frame.coil_maps[:, y, x].contiguous(),
        space=replace(frame.space, encoded_matrix=(1, *grid.shape)),
    )
