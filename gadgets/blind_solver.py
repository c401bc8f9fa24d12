"""Image and field map from the same data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gadgets.frame import Frame, Samples, SeriesImage
from gadgets.gadget import Session
from gadgets.imaging_model import encoding_of, encoding_with_field, frequency_range, model_of, moment_of_the_centre
from gadgets.prior_solver import PriorSolver, prior_property
from gadgets.property import choice, flag, integer, real
from recon_core.calibration.shim import Shim, sharpest_shim
from recon_core.coil_errors import CoilErrors
from recon_core.field_basis import FieldBasis, polynomial_basis, smooth_basis
from recon_core.halved_grid import HalvedGrid
from recon_core.object_mask import dilated, object_mask
from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.blind_gauss_newton import Stage, alone, blind_gauss_newton, coarse, fine
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem
from recon_core.solvers.blind_red_diff import blind_red_diff
from recon_core.solvers.conjugate_gradient import conjugate_gradient
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.held_out import held_out_misfits
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run

GAUSS_NEWTON, RED_DIFF = "gauss_newton", "red_diff"
SMOOTH, POLYNOMIAL = "smooth", "polynomial"

OUTLINE = 0.1
"""Of the brightest pixels of a first image, what belongs to the object: blur spreads some around it."""

MARGIN_MM = 4.0
"""By which the field is looked for beyond the outline."""

AT_THE_LIMIT = 0.002
"""Part of the signal whose field may be at the limit without a word."""

BEYOND_THE_LIMIT = 0.1
"""Part of the signal whose field may be at the limit for the rest to be believed."""

STILL_TO_MOVE_HZ = 20.0
"""By which the field may move once it is about right."""

CLEAR_GAIN = 0.25
"""In sharpness over no field at all, of an image with a shim that is believed.

Far shims gained 31 (a phantom) to 96 %, and were all found. Of nine heads without one, eight gained 3 to 25 %, and what
was found was up to 23 Hz worse than zero; one gained 40 %, and it helped (benchmarks/RESULTS.md).
"""

HELD_OUT_EVERY = 8
"""Of the interleaves, how many are one that is held out to judge by."""

BEYOND_CHANCE = 3.0
"""Standard errors by which held-out samples must be foretold better with a field than without, for it to be believed.

Where the data tell nothing of a field, as Cartesian lines do, half of all fields are a little better by chance: by 2.3
at most in ten such scans, from -6.4. Heads in a field gained 18 and more. The error counts samples as if each erred by
itself, which they do but in part, and so three of it are less than they seem.
"""


class BlindSolver(PriorSolver):
    """Finds the image and the field map together, where nobody measured the field or it has changed since.

    The field must be seen in the data: readouts of several milliseconds, and coils or a prior that tell an image from
    one that is blurred; spirals are what it is made for. A map from an earlier gadget is where joint steps begin;
    blind RED-diff begins without. The field map leaves as the series `field_map`, with its standard deviation as
    `field_deviation`, after the image, and later gadgets get it. Where the data have no use for a field, it is as the
    basis makes it likely.

    A shim hundreds of Hz off is beyond what steps from a field of zero reach; `seek_shim` looks for it first. What it
    found, or why it found none, stands in the history. It wants most of the interleaves: undersampling misleads it.

    Coil maps that earlier gadgets made of the same spiral hold the blur of its centre, and maps of few calibration
    lines their noise; `refine_coil_maps` lets them move with image and field, beginning with smooth maps that are
    nearest to them but at the edges of the field of view, where maps from few points of k-space are wrong. They leave
    as the series `coil_maps`, and later gadgets get them.

    Afterwards an interleaf is left out and foretold by the others and the prior, with field and maps as they were found
    and as they were before: if they do not clearly help, or the field is at its limit where much of the signal is, or
    there is no object to look for it in, the image leaves without a correction, which is told, and stands in its
    history and comment, and no field map leaves.

    The image has its phase at the moment when the centre of k-space is visited, not at the excitation. Its deviation,
    of several samples, is twice that among them, which are too alike, and holds what the field may be off by; half of
    it or more is of the phase. Of an image that leaves uncorrected it is that among the samples alone.
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
    seek_shim = flag(
        False,
        "whether joint steps begin with the offset and the gradients, within the limit, that make the image sharpest, "
        "where it is clearly sharper and no field map is known: for phantoms and first scans with a shim hundreds of "
        "Hz off; nearer fields do not need it",
    )
    refine_coil_maps = flag(False, "whether the coil maps are sought too, beginning with those of an earlier gadget")
    steps = integer(1000, "of the method red_diff", low=1, high=100000)
    slices_per_batch = integer(1, "slices that are solved at once: always one", low=1, high=1)

    def open(self, session: Session) -> None:
        """Reads the prior.

        Raises:
            ValueError: a property is set that has no effect, or the prior cannot be read.
        """
        if self.method == RED_DIFF:
            self.require_effect(f"with method {RED_DIFF}", "fields", "seek_shim", "refine_coil_maps")
        else:
            self.require_effect(f"with method {self.method}", "steps")
        if not self._polynomial:
            self.require_effect(f"with fields {self.fields}", "order")
        super().open(session)
        self._blind: BlindEstimate | None = None

    @property
    def _what(self) -> str:
        fields = f"polynomial fields of order {self.order}" if self._polynomial else "smooth fields"
        coils = ", coil maps" if self.refine_coil_maps else ""
        drawn = f"{self._draws} sample{'s' * (self._draws > 1)}"
        return f"{self.method} with {self._provenance}, {fields} within {self.limit:g} Hz{coils}, {drawn}"

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
                for coil_map in self._blind.coil_maps if self.refine_coil_maps else ():
                    yield SeriesImage("coil_maps", coil_map, item.frame)

    def _nothing(self, frame: Frame) -> tuple[Tensor, Tensor | None]:
        self._blind = None
        return super()._nothing(frame)

    def _solved(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor | None]:
        solved = super()._solved(frames)
        for frame in frames:
            frame.history += self._notes
            frame.caveat = "; ".join(filter(None, (frame.caveat, self._caveat)))
            if self._blind is not None:
                frame.field_map = self._blind.field_hz
                frame.coil_maps = self._blind.coil_maps
                frame.history.append(f"BlindSolver: {_described(self._blind)}")
        return solved

    def _found(self, batch: Frame, kspace: Tensor, run: Run) -> tuple[Estimate, Tensor]:
        assert batch.coil_maps is not None
        self._blind, self._notes, self._caveat = None, list[str](), ""
        frame = replace(
            batch,
            samples=Samples(kspace[0], batch.samples.trajectory),
            times=batch.times - moment_of_the_centre(batch),
            coil_maps=batch.coil_maps[0],
            field_map=None if batch.field_map is None else batch.field_map[0],
        )
        if frame.field_map is not None:
            _require_usable(frame.field_map, frame.space.shape)
        begun = self._with_shim(frame) if self.seek_shim else frame
        mask = self._mask(begun)
        try:
            basis = self._basis(frame, mask)
        except ValueError as error:
            return self._uncorrected(frame, run, f"there is no object to look for a field in: {error}")
        found = self._sought(begun, basis, run)
        reason = self._doubts(frame, basis, found, run)
        if reason is not None:
            return self._uncorrected(frame, run, reason)
        self._blind = found
        return _as_a_slice(found.image), found.unit[None]

    def _with_shim(self, frame: Frame) -> Frame:
        """With a field to begin with where a shim is clearly seen; otherwise as it is, which is told and noted."""
        try:
            shim = self._shim(frame)
        except ValueError as error:
            start = "at zero" if frame.field_map is None else "with the field map of before"
            note = f"BlindSolver: no clear shim: {error}; the search begins {start}"
            self._notes.append(note)
            self.session.tell(f"{frame.label}: {note}")
            return frame
        self._notes.append(f"BlindSolver: begins with a shim of {_told(shim, frame)}")
        field_hz = self._within_limit(shim.field(frame.space.shape, frame.device))
        return replace(frame, field_map=field_hz)

    def _shim(self, frame: Frame) -> Shim:
        """What makes the image sharpest.

        Raises:
            ValueError: a field map is known, none can be sought, or the image is hardly sharper with it.
        """
        if frame.field_map is not None:
            raise ValueError("seek_shim has no effect where a field map is known")
        sampling, kspace = encoding_of(frame, self.session).sampling, frame.samples.kspace
        shim = sharpest_shim(sampling, kspace, frame.times, self.limit)
        if shim.gain < CLEAR_GAIN:
            raise ValueError(f"the best one, {_told(shim, frame)}, which is less than {CLEAR_GAIN:.0%}")
        return shim

    def _sought(self, frame: Frame, basis: FieldBasis, run: Run) -> BlindEstimate:
        start = torch.zeros_like(basis.deviation_hz)
        if frame.field_map is not None:
            start = basis.fit(self._within_limit(frame.field_map))
        if self.method == RED_DIFF:
            problem = self._problem_of(frame, basis, None)
            problem = problem.scaled_for(self._prior.convention, problem.start)
            return blind_red_diff(problem, self._prior, run, steps=self.steps, order=self.order)
        return blind_gauss_newton(self._stages(frame, basis), self._prior, run, start)

    def _within_limit(self, field_hz: Tensor) -> Tensor:
        return field_hz.clamp(-self.limit, self.limit)

    def _mask(self, frame: Frame) -> Tensor:
        """The outline of what a first image shows, in the field that is known before if there is one, and a margin.

        Without it, a far shim moves the outline.
        """
        assert frame.coil_maps is not None
        if frame.field_map is None:
            model = LinearModel(encoding_of(frame, self.session), frame.coil_maps)
        else:
            model = self._model(replace(frame, field_map=self._within_limit(frame.field_map)))
        problem = LinearProblem.of(model, frame.samples.kspace)
        blurred = conjugate_gradient(problem.normal, problem.adjoint, iterations=10, tolerance=1e-2).image
        margin = [MARGIN_MM * n / mm for n, mm in zip(blurred.shape, frame.space.encoded_fov_mm[1:], strict=True)]
        return dilated(object_mask(blurred.abs()[None], OUTLINE)[0], margin)

    def _basis(self, frame: Frame, mask: Tensor) -> FieldBasis:
        if self._polynomial:
            return polynomial_basis(mask, self.order)
        return smooth_basis(mask, frame.space.encoded_fov_mm[1:])

    def _stages(self, frame: Frame, basis: FieldBasis) -> list[Stage]:
        """From coarse to fine."""
        errors = None
        if self.refine_coil_maps and len(frame.samples.kspace) > 1:
            errors = CoilErrors.smooth(frame.space.shape, frame.space.encoded_fov_mm[1:]).to(frame.device)
            assert frame.coil_maps is not None
            frame = replace(frame, coil_maps=errors.continued(frame.coil_maps, basis.mask))
        half = _halved(frame)
        if half is None:
            return [alone(lambda _: self._problem_of(frame, basis, errors))]

        def about(coefficients: Tensor) -> BlindProblem:
            """For fields near the one that is known by then, for which fewer functions of time suffice.

            And for zero, as it is outside of the object.
            """
            inside = basis.field(coefficients)[basis.mask]
            field_hz = torch.cat([inside, inside.new_zeros(1)])
            low_hz, high_hz = frequency_range(torch.cat([field_hz - STILL_TO_MOVE_HZ, field_hz + STILL_TO_MOVE_HZ]))
            return self._problem_of(frame, basis, errors, max(low_hz, -self.limit), min(high_hz, self.limit))

        early = self._problem_of(half, basis.halved, errors and errors.halved)
        return [coarse(lambda _: early), fine(about)]

    def _problem_of(
        self,
        frame: Frame,
        basis: FieldBasis,
        errors: CoilErrors | None,
        low_hz: float | None = None,
        high_hz: float | None = None,
    ) -> BlindProblem:
        """For fields of a range, by default all within the limit."""
        assert frame.coil_maps is not None
        low_hz, high_hz = (-self.limit if low_hz is None else low_hz), (self.limit if high_hz is None else high_hz)
        encoding = encoding_with_field(frame, self.session, low_hz, high_hz, self.off_resonance_error)
        return BlindProblem.of(encoding, frame.coil_maps, frame.samples.kspace, frame.times, basis, errors)

    def _doubts(self, frame: Frame, basis: FieldBasis, found: BlindEstimate, run: Run) -> str | None:
        """Why the estimate is not to be believed; also tells and notes what is worth knowing otherwise."""
        power = basis.mask * found.image.image.abs().square()  # the mask holds what the blur has spread, too
        limited = float((power * (found.field_hz.abs() > 0.99 * self.limit)).sum() / power.sum())
        at_the_limit = f"at the limit of {self.limit:g} Hz where {limited:.1%} of the signal is"
        if limited > BEYOND_THE_LIMIT:
            return f"the field is {at_the_limit}; try a larger BlindSolver.limit"
        if limited > AT_THE_LIMIT:
            self.session.tell(
                f"{frame.label}: the field is {at_the_limit}, and may be larger there; try a larger BlindSolver.limit"
            )
        shots = frame.samples.kspace.shape[1]
        if shots == 1:
            self._notes.append("BlindSolver: there is no other interleaf to judge the field by")
            return None
        before = torch.zeros_like(found.field_hz) if frame.field_map is None else frame.field_map
        seed = int(torch.randint(2**31, (1,), generator=run.generator, device=run.generator.device))
        without = self._held_out(replace(frame, field_map=self._within_limit(before)), seed)
        corrected = self._held_out(replace(frame, field_map=found.field_hz, coil_maps=found.coil_maps), seed)
        gain = without - corrected
        by_chance = float(gain.std()) / math.sqrt(gain.numel())
        misfits = (
            f"held-out interleaves are missed by {float(corrected.mean()):.4g} per sample with the field, "
            f"{float(without.mean()):.4g} without (standard error of the gain {by_chance:.2g})"
        )
        if not float(gain.mean()) > BEYOND_CHANCE * by_chance:
            return misfits
        self._notes.append(f"BlindSolver: {misfits}")
        return None

    def _held_out(self, frame: Frame, seed: int) -> Tensor:
        """How far an image of the other interleaves is from those held out, on half the grid where there is one."""
        frame = _halved(frame) or frame
        held = torch.zeros(frame.samples.kspace.shape[1], dtype=torch.bool)
        held[len(held) // 2 :: HELD_OUT_EVERY] = True
        others, kept = (_of_shots(frame, which.to(frame.device)) for which in (~held, held))
        problem = LinearProblem.of(self._model(others), others.samples.kspace).scaled_for(self._prior.convention)
        generator = torch.Generator(frame.device).manual_seed(seed)
        return held_out_misfits(problem, self._prior, generator, self._model(kept), kept.samples.kspace)

    def _model(self, frame: Frame) -> LinearModel:
        """With an encoding for all fields that may be found."""
        assert frame.coil_maps is not None
        encoding = encoding_with_field(frame, self.session, -self.limit, self.limit, self.off_resonance_error)
        return LinearModel(encoding, frame.coil_maps, frame.field_map)

    def _uncorrected(self, frame: Frame, run: Run, reason: str) -> tuple[Estimate, Tensor]:
        """The image in the field that was known before, if any."""
        how = "without a correction for off-resonance" if frame.field_map is None else "with the map of before"
        self._caveat = f"no field was found, the image is {how}"
        note = f"BlindSolver: {self._caveat}: {reason}"
        self._notes.append(note)
        self.session.tell(f"{frame.label}: {note}")
        model = model_of(frame, self.session, self.off_resonance_error)
        given = LinearProblem.of(model, frame.samples.kspace).scaled_for(self._prior.convention)
        return _as_a_slice(decomposed_diffusion(given, self._prior, run)), given.unit[None]


def _as_a_slice(found: Estimate) -> Estimate:
    deviation = None if found.deviation is None else found.deviation[None]
    return replace(found, image=found.image[None], deviation=deviation)


def _described(found: BlindEstimate) -> str:
    low, high = (float(x) for x in found.field_hz.aminmax())
    course = ", ".join(f"{misfit:.3f}" for misfit in found.misfits[:: max(len(found.misfits) // 6, 1)])
    return f"field from {low:.0f} to {high:.0f} Hz; misfit per sample {course}, at last {found.misfits[-1]:.3f}"


def _told(shim: Shim, frame: Frame) -> str:
    y, x = (hz / mm * 10 for hz, mm in zip((shim.y_hz, shim.x_hz), frame.space.encoded_fov_mm[1:], strict=True))
    plane = f"{round(shim.offset_hz)} Hz, {y:.1f} Hz/cm along y and {x:.1f} Hz/cm along x"
    return f"{plane} makes the image {shim.gain:.1%} sharper"


def _require_usable(field_map: Tensor, shape: tuple[int, ...]) -> None:
    if field_map.shape != shape:
        raise ValueError(f"expected a field map {list(shape)} on the grid of the image, got {list(field_map.shape)}")
    if not torch.isfinite(field_map).all():
        raise ValueError("the field map holds values that are not finite")


def _of_shots(frame: Frame, which: Tensor) -> Frame:
    """The frame with some of its shots, `[shot]`."""
    kspace, trajectory = frame.samples.kspace[:, which], frame.samples.trajectory[:, which]
    return replace(frame, samples=Samples(kspace, trajectory), times=frame.times[which])


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
        field_map=None if frame.field_map is None else frame.field_map[y, x].contiguous(),
        space=replace(frame.space, encoded_matrix=(1, *grid.shape)),
    )
