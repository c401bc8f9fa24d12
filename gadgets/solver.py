"""What the gadgets that solve linear problems have in common: batches of slices, time budget, progress, cancelling."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gadgets.frame import Frame, Samples, SeriesImage
from gadgets.gadget import COIL_MAPS, FRAMES, IMAGE, WHITENED, Gadget, Session
from gadgets.imaging_model import model_of
from gadgets.memory import begun, taken_on_the_cpu
from gadgets.property import integer, real
from recon_core.calibration.unmeasured_noise import unmeasured_noise
from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Budget, Estimate, Run

log = logging.getLogger("spinstream")

SLICES_ON_A_GPU = 8

LEAST_NOISE = 0.1
"""Variance of the noise in samples that can hold noise of unit variance; less than one where zeros were filled in."""

REMEDY = (
    "NoisePrewhitening takes it from a noise scan in the stream, from an earlier noise measurement on which the header "
    "says this one depends, or from the file of its property covariance"
)

PROGRESS_SECONDS = 5.0
"""From one word about the progress to the next."""


class Solver(Gadget[Frame]):
    """Base of gadgets that find the images of frames, of several slices at once where that pays.

    Frames that follow each other are one batch where they have trajectory, times and shape in common, and all a field
    map or none. Their order is kept. The random draws of a batch depend on the session's seed and on which frame its
    first one is (slice, contrast, repetition, ...): with one slice per batch, an image does not depend on what came
    before it. On other machines each frame is a batch of its own.

    The data have the weight that unit noise gives them. Where prewhitening found no noise data, the noise of each frame
    is estimated from its samples (`unmeasured_noise`), which is told and stands in the history.
    """

    takes = Frame
    needs = frozenset({WHITENED, FRAMES, COIL_MAPS})
    adds = frozenset({IMAGE})
    per_frame = True

    time_budget = real(
        0.0,
        "for the steps of each batch; when it is over, the best image so far leaves; 0 sets no limit",
        unit="seconds",
        low=0.0,
    )
    slices_per_batch = integer(
        0,
        "slices that are solved at once: a batch waits until so many alike, or one that is not, have come, so that 1 "
        f"lets images leave soonest; 0 means one on the CPU and {SLICES_ON_A_GPU} on a GPU; on a cluster always one",
        low=0,
        high=256,
    )
    off_resonance_error = real(1e-3, "largest relative error of the off-resonance in the model", low=1e-6, high=0.1)

    def open(self, session: Session) -> None:
        """Forgets the frames of any earlier session."""
        super().open(session)
        self._held: list[Frame] = []
        self._estimate_told = False

    def take(self, item: Frame) -> Iterator[object]:
        """Yields, once a batch is complete, for each frame its image, its deviation if there is one, and the frame.

        Raises:
            ValueError: the frame is three-dimensional, its samples are not finite, they are too weak to hold noise of
                unit variance, or the noise is not known and the outermost samples hold none.
        """
        if len(item.space.shape) != 2:
            matrix = " x ".join(map(str, item.space.shape))
            raise ValueError(f"solves two-dimensional images, got the matrix {matrix}; CgSense takes three dimensions")
        if self._held and not _alike(item, self._held[0]):
            yield from self._release()
        self._held.append(item)
        if len(self._held) >= self._batch_size or not _has_signal(item):
            yield from self._release()

    def finish(self) -> Iterator[object]:
        """Yields the same of the frames that are still held."""
        yield from self._release()

    @property
    def _batch_size(self) -> int:
        return self.slices_per_batch or (SLICES_ON_A_GPU if self.session.device.type == "cuda" else 1)

    @property
    def _draws(self) -> int:
        """How many images are drawn."""
        return 1

    @property
    def _what(self) -> str:
        """What is done, for the history."""
        raise NotImplementedError

    def _problem(self, model: LinearModel, kspace: Tensor) -> LinearProblem:
        """On the scale that the method wants."""
        raise NotImplementedError

    def _estimate(self, problem: LinearProblem, run: Run) -> Estimate:
        raise NotImplementedError

    def _release(self) -> Iterator[object]:
        frames, self._held = self._held, []
        if frames:
            yield from self._fitting(frames)

    def _fitting(self, frames: Sequence[Frame]) -> Iterator[object]:
        """Results of a batch; in halves, or of one frame on the CPU, where the GPU's memory does not suffice."""
        untouched = [replace(frame, history=[*frame.history]) for frame in frames]
        results = begun(self._results(frames), frames[0].device)
        if results is not None:
            yield from results
        elif len(frames) == 1:
            yield from taken_on_the_cpu(self, *untouched)
        else:
            name, half = type(self).__name__, math.ceil(len(frames) / 2)
            memory = f"the GPU's memory did not suffice for {len(frames)} slices at once"
            self.session.tell(f"{_named(frames)}: {name} continues with half of them, since {memory}")
            for frame in untouched:
                frame.history.append(f"{name}: {memory}")
            yield from self._fitting(untouched[:half])
            yield from self._fitting(untouched[half:])

    def _results(self, frames: Sequence[Frame]) -> Iterator[object]:
        """Image, deviation if there is one, and frame, of each frame of a batch."""
        images, deviations = self._solved(frames) if _has_signal(frames[0]) else self._nothing(frames[0])
        for index, frame in enumerate(frames):
            log.info("%s: %s", frame.label, frame.history[-1])
            frame.image = image = images[index]
            yield SeriesImage("image", image, frame)
            if deviations is not None:
                yield SeriesImage("deviation", deviations[index], frame)
            yield frame

    def _solved(self, frames: Sequence[Frame]) -> tuple[Tensor, Tensor | None]:
        """Images and deviations `[slice, y, x]` in physical units."""
        noise = self._noise(frames)
        batch = _joined(frames)
        progress = _Progress(self.session, _named(frames), self.time_budget or math.inf)
        run = Run(self.session.generator(*_identity(frames[0])), self._draws, progress)
        estimate, unit = self._found(batch, batch.samples.kspace / noise[:, None, None, None], run)
        how = f"{self._what}, {estimate.steps} of {estimate.planned} steps in {progress.seconds:.2f} s"
        if estimate.steps < estimate.planned:
            how += ", when the time budget was spent"
        if len(frames) > 1:
            how += f", {len(frames)} slices at once"
        units = noise * unit
        for frame, physical in zip(frames, units.tolist(), strict=True):
            frame.history += [*batch.history, f"{type(self).__name__}: {how}, unit {physical:.4g}"]
        scale = units[:, None, None]
        return scale * estimate.image, None if estimate.deviation is None else scale * estimate.deviation

    def _found(self, batch: Frame, kspace: Tensor, run: Run) -> tuple[Estimate, Tensor]:
        """The estimate, and its unit `[slice]`, of frames that were joined into one, and of their whitened samples."""
        problem = self._problem(model_of(batch, self.session, self.off_resonance_error), kspace)
        return self._estimate(problem, run), problem.unit

    def _noise(self, frames: Sequence[Frame]) -> Tensor:
        """Standard deviation of the noise per complex sample, `[slice]`."""
        like = frames[0].samples.kspace.real
        if self.session.noise_known:
            _require_unit_noise(frames)
            return like.new_ones(len(frames))
        levels = [_estimated_noise(frame) for frame in frames]
        name = type(self).__name__
        if not self._estimate_told:
            self._estimate_told = True
            self.session.tell(
                f"{name}: the noise was not measured, and is estimated from what cannot be signal, or hardly, in the "
                "samples, no lower than models miss. Signal there makes it too large, and the image too smooth. "
                f"{REMEDY} (told once)."
            )
        for frame, level in zip(frames, levels, strict=True):
            frame.history.append(f"{name}: noise of {level:.3g} per sample, estimated from the samples")
        return like.new_tensor(levels)

    def _nothing(self, frame: Frame) -> tuple[Tensor, Tensor | None]:
        """Of a frame all of whose samples are zero, which gives no scale to solve on."""
        note = f"{type(self).__name__}: all samples are zero, and so is the image"
        frame.history.append(note)
        self.session.tell(f"{frame.label}: {note}")
        image = frame.samples.kspace.new_zeros(1, *frame.space.shape)
        return image, image.real if self._draws > 1 else None


class _Progress:
    """`Run.go_on` of a batch: leaves when the client does, keeps to the budget, and tells how far it is.

    The clock starts with the first step: what is set up for it may serve other batches too.
    """

    def __init__(self, session: Session, name: str, seconds: float) -> None:
        self._session = session
        self._name = name
        self._seconds = seconds
        self._budget: Budget | None = None
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, planned: int) -> bool:
        self._session.require_client()
        if self._budget is None:
            self._began = self._told = time.monotonic()
            self._budget = Budget(self._seconds)
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._session.tell(f"{self._name}: {done} of {planned} steps")
        return self._budget(done, planned)

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._began


def _named(frames: Sequence[Frame]) -> str:
    return frames[0].label + (f" and {len(frames) - 1} more" if len(frames) > 1 else "")


def _has_signal(frame: Frame) -> bool:
    return bool(frame.samples.kspace.any())


def _require_unit_noise(frames: Sequence[Frame]) -> None:
    """Samples that are weaker than their noise was said to be would count for nothing, and the prior for all.

    Of noise alone three quarters of the squared magnitudes are below ln 4 times the variance, and signal only adds to
    it. The channel with most of it counts: others may be dead. Up to half of a readout may have been filled with zeros.
    """
    for frame in frames:
        power = frame.samples.kspace.abs().square().flatten(1)
        variance = float(power.kthvalue(math.ceil(0.75 * power.shape[1])).values.max()) / math.log(4)
        if variance < LEAST_NOISE:
            raise ValueError(
                "expected prewhitened samples, whose noise has the variance 1, got samples whose noise has the "
                f"variance {variance:.3g} at most in {frame.label}: was it measured with the same gains and sampling "
                f"time? {REMEDY}"
            )


def _estimated_noise(frame: Frame) -> float:
    try:
        return unmeasured_noise(frame.samples.kspace, frame.samples.trajectory)
    except ValueError as error:
        raise ValueError(
            f"the noise of {frame.label} was not measured, and is not to be seen: {error}. {REMEDY}"
        ) from error


def _alike(frame: Frame, other: Frame) -> bool:
    """Whether two frames can be one batch, of which the other is the first."""
    samples, others = frame.samples, other.samples
    return (
        _has_signal(frame)
        and frame.space.shape == other.space.shape
        and samples.kspace.shape == others.kspace.shape
        and (frame.field_map is None) == (other.field_map is None)
        and torch.equal(samples.trajectory, others.trajectory)
        and torch.equal(frame.times, other.times)
    )


def _joined(frames: Sequence[Frame]) -> Frame:
    """One frame whose k-space, maps and fields have slices first, and no history."""
    first = frames[0]
    kspace = torch.stack([frame.samples.kspace for frame in frames])
    fields = [frame.field_map for frame in frames if frame.field_map is not None]
    return replace(
        first,
        samples=Samples(kspace, first.samples.trajectory),
        coil_maps=torch.stack([frame.coil_maps for frame in frames if frame.coil_maps is not None]),
        field_map=torch.stack(fields) if fields else None,
        history=[],
    )


def _identity(frame: Frame) -> tuple[int, ...]:
    """Which frame of the measurement it is."""
    idx = frame.reference.idx
    counters = idx.slice, idx.contrast, idx.repetition, idx.set, idx.phase, idx.average
    return frame.reference.encoding_space_ref, *counters
