"""Runs one scan through several pipelines and says how far their images are from the truth.

Everything is measured on what leaves a pipeline: magnitudes on the reconstruction grid, pixels over their
ImageScaleFactor. `metrics.json` holds for each pipeline the means over its slices, and beside them

    scale   the factor that its images were multiplied by: fitted to a truth that is brought, 1 for the file's own
    spread  standard deviations over the slices
    slices  the same figures of each slice, with its number and its other counters, counted from 0
    notes   what a reader of the figures must know: slices that are left out, deviations that are too small

or, for a pipeline that failed, `error` alone. What is not known, and what is not finite, is null.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.gadget import Header
from gadgets.image_export import SERIES
from gadgets.noise_prewhitening import NoisePrewhitening
from pipelines.definition import Definition
from pipelines.errors import PipelineError, SpinstreamError
from pipelines.expected_images import expected_images
from pipelines.header import read_header
from pipelines.image_series import field_of, images_of_main_series, is_whitened, kind_of, magnitude_of, solver_report
from pipelines.registry import nearest
from pipelines.replay import Progress, Replay, local_definition, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from pipelines.truth import Magnitudes, Truth
from recon_core.metrics import coverage, error_correlation, nmse, psnr, ssim
from recon_core.object_mask import object_mask

Figures: TypeAlias = dict[str, float | None]

LEAST_COVERAGE = 0.7
"""Of the 90 % interval; exact draws of the posterior cover 0.69 if there are 2 of them, and more of more."""

Zoom: TypeAlias = tuple[int, int, int]
"""First row, first column and edge of a square window, in pixels."""

Counters: TypeAlias = Mapping[str, int]

COUNTERS = ("slice", "contrast", "phase", "repetition", "set")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to compare.

    Attributes:
        raw: ISMRMRD file.
        pipelines: names of installed definitions, or paths.
        truth: what their images should be.
        group: of the measurement in the raw file.
        parameters: properties to set, by "gadget.property", in each pipeline that has the gadget.
        zoom: the window to show enlarged; None takes the place where the pipelines differ most, in each slice.
    """

    raw: Path
    pipelines: Sequence[str]
    truth: Truth
    group: str = "dataset"
    parameters: Mapping[str, str] = field(default_factory=dict)
    zoom: Zoom | None = None


@dataclass(frozen=True)
class Fields:
    """The off-resonance of an image `[z, y, x]`, or of a slice of it `[y, x]`, in Hz, signal ~ exp(-2 pi i psi t).

    Attributes:
        estimated: as a pipeline sent it.
        true: not a number outside of the object.
    """

    estimated: NDArray[np.float32]
    true: NDArray[np.float32]

    def of_partition(self, number: int) -> Fields | None:
        """Those of one slice, where there is any object in it."""
        true = self.true[number]
        return Fields(self.estimated[number], true) if np.isfinite(true).any() else None

    @property
    def error(self) -> NDArray[np.float32]:
        """Not a number outside of the object."""
        return self.estimated - self.true


@dataclass(frozen=True)
class Plane:
    """One slice as a pipeline sent it, on the scale of the truth.

    Attributes:
        counters: its slice, and those of its other counters that are not 0.
        image: magnitudes `[y, x]`.
        reference: those of the truth.
        deviation: standard deviation of the complex image, where the pipeline sends one.
        fields: where the pipeline sends a field map, and the truth is known.
        figures: by name.
    """

    counters: Counters
    image: Magnitudes
    reference: Magnitudes
    deviation: Magnitudes | None
    fields: Fields | None
    figures: Figures

    @property
    def label(self) -> str:
        """ "slice 3, repetition 1"."""
        return _label(self.counters)


@dataclass(frozen=True)
class Outcome:
    """What became of one pipeline.

    Attributes:
        scale: the factor that its images were multiplied by.
        planes: in the order of their counters; none where it failed.
        notes: what a reader of the figures must know.
        error: why it failed.
    """

    scale: float = 1.0
    planes: tuple[Plane, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def mean(self) -> Figures:
        """Over all planes; None for what is not known of any."""
        return {name: statistics.fmean(values) if values else None for name, values in self._known.items()}

    @property
    def spread(self) -> Figures:
        """Standard deviation over all planes; None for fewer than two, or if one is infinite."""
        return {
            name: statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
            for name, values in self._known.items()
        }

    @property
    def _known(self) -> dict[str, list[float]]:
        names = dict.fromkeys(name for plane in self.planes for name in plane.figures)
        return {name: [v for plane in self.planes if (v := plane.figures.get(name)) is not None] for name in names}

    def to_json(self) -> dict[str, Any]:
        """What `metrics.json` says of it: see the module."""
        if self.error is not None:
            return {"error": self.error}
        slices = [{**plane.counters, **_finite(plane.figures)} for plane in self.planes]
        spread, notes = _finite(self.spread), list(self.notes)
        return {**_finite(self.mean), "scale": self.scale, "spread": spread, "slices": slices, "notes": notes}


def evaluate(job: Evaluation, site: Site, note: Callable[[str], None], show: Progress) -> dict[str, Outcome]:
    """Runs the pipelines, one after the other.

    Args:
        job: what to compare.
        site: of this machine; each pipeline begins with an empty cache, so that none has the others' work for free.
        note: takes what the pipelines tell.
        show: wraps the readouts in a progress display.

    Returns:
        By pipeline; one that failed says why.

    Raises:
        PipelineError: there is no such pipeline, none of them has the gadget of a parameter, or a gadget has no such
            property or does not take the value.
        SpinstreamError: the raw file cannot be read, or the truth or the zoomed window does not fit its images.
    """
    _check_parameters(job, site)
    outcomes = {}
    with RawFile(job.raw, job.group) as raw:
        header = read_header(raw.header_xml)
        if job.zoom is not None:
            _check_zoom(job.zoom, header)
        _check_truth(job, raw, header)
        for pipeline in job.pipelines:
            fresh = replace(site)  # with an empty cache, so that the seconds of each are its own
            try:
                outcomes[pipeline] = _outcome(job, pipeline, raw, fresh, note, show)
                for text in outcomes[pipeline].notes:
                    note(f"{pipeline}: {text}")
            except SpinstreamError as error:
                outcomes[pipeline] = Outcome(error=str(error))
                note(f"{pipeline} failed: {error}")
    return outcomes


@dataclass(frozen=True)
class _Arrival:
    """An image, what it should be `[z, y, x]`, and seconds since the first readout was taken."""

    image: ismrmrd.Image
    reference: Magnitudes
    seconds: float

    @property
    def key(self) -> tuple[int, ...]:
        return tuple(int(getattr(self.image, name)) for name in COUNTERS)

    def is_of(self, series: str) -> bool:
        return kind_of(self.image) == SERIES[series].description

    def counters(self, partition: int) -> Counters:
        counters = {name: value for name, value in zip(COUNTERS, self.key, strict=True) if value}
        return {**counters, "slice": self.key[0] * len(self.reference) + partition}


def _outcome(
    job: Evaluation, pipeline: str, raw: RawFile, site: Site, note: Callable[[str], None], show: Progress
) -> Outcome:
    if job.truth.whitened and NoisePrewhitening.__name__ not in _gadgets(pipeline, site):
        raise PipelineError(f"expected {NoisePrewhitening.__name__}, on whose scale the truth of {job.truth.name} is")
    parameters = _parameters_of(pipeline, job, site)
    replay = Replay(raw=job.raw, pipeline=pipeline, group=job.group, parameters=parameters)
    arrivals = _arrivals(replay, job.truth, raw, site, lambda text: note(f"{pipeline}: {text}"), show)
    try:
        return _judged(arrivals, job.truth)
    except ValueError as error:
        raise SpinstreamError(str(error)) from error


def _arrivals(
    job: Replay, truth: Truth, raw: RawFile, site: Site, note: Callable[[str], None], show: Progress
) -> list[_Arrival]:
    """All images that a pipeline sends. The clock starts when it is ready for the first readout."""
    began = 0.0
    arrivals: list[_Arrival] = []

    def started(items: Iterable[ismrmrd.Acquisition], total: int) -> Iterator[ismrmrd.Acquisition]:
        nonlocal began
        began = time.perf_counter()
        yield from show(items, total)

    def keep(item: object) -> None:
        if not isinstance(item, ismrmrd.Image):
            return
        if truth.whitened and not is_whitened(item):
            raise SpinstreamError(
                f"the truth of {truth.name} is on the scale after prewhitening, but no noise data were found: expected "
                f"a noise scan in {raw.path.name}; --truth FILE brings a truth to which images are fitted"
            )
        try:
            arrivals.append(_Arrival(item, truth.places.at(item), time.perf_counter() - began))
        except ValueError as error:  # at the first image: what follows would be for nothing
            raise SpinstreamError(str(error)) from error

    replay_here(job, raw, site, keep, note, started)
    return arrivals


def _judged(arrivals: Sequence[_Arrival], truth: Truth) -> Outcome:
    """The outcome of a pipeline that came to its end.

    Raises:
        ValueError: its images cannot be compared with the truth.
    """
    main = images_of_main_series([arrival.image for arrival in arrivals])
    judged = [arrival for arrival in arrivals if any(arrival.image is image for image in main)]
    scale = 1.0 if truth.own else _fitted_scale(judged)
    deviations = {a.key: scale * magnitude_of(a.image) for a in arrivals if a.is_of("deviation")}
    fields = _fields(arrivals, truth)
    planes: list[Plane] = []
    empty: list[Counters] = []
    before = 0.0
    for arrival in judged:
        planes += _planes(
            arrival, scale, deviations.get(arrival.key), fields.get(arrival.key), arrival.seconds - before
        )
        empty += [arrival.counters(number) for number, reference in enumerate(arrival.reference) if not reference.any()]
        before = arrival.seconds
    found = {counters["slice"] for counters in (*empty, *(plane.counters for plane in planes))}
    if truth.places.count not in (None, len(found)):
        listed = ", ".join(map(str, sorted(found)))
        raise ValueError(f"expected the {truth.places.count} slices of the truth, got slices {listed}, counted from 0")
    if not planes:
        raise ValueError("the truth is zero in all slices")
    planes.sort(key=lambda plane: [plane.counters.get(name, 0) for name in COUNTERS])
    return Outcome(scale, tuple(planes), tuple(_notes(planes, empty)))


def _notes(planes: Sequence[Plane], empty: Sequence[Counters]) -> Iterator[str]:
    """What a reader of the figures must know."""
    if empty:
        yield f"left out, since the truth is zero there: {'; '.join(map(_label, empty))}"
    # An image of nothing, from data of nothing, is not the fault of its deviation.
    judged = [plane.figures.get("coverage") for plane in planes if plane.image.any()]
    covered = [value for value in judged if value is not None]
    if covered and statistics.fmean(covered) < LEAST_COVERAGE:
        yield (
            f"the 90 % interval covers {statistics.fmean(covered):.0%} of the truth only, the deviation is too small: "
            "the prior does not suit these images, the samples of the method are too alike (those of "
            "preconditioned_langevin are so least), or coil maps and field are off"
        )


def _fields(arrivals: Sequence[_Arrival], truth: Truth) -> dict[tuple[int, ...], Fields]:
    """The field maps that a pipeline sent, by their counters, where the truth is known."""
    if truth.field_hz is None:
        return {}
    maps = [arrival for arrival in arrivals if arrival.is_of("field_map")]
    return {a.key: Fields(field_of(a.image), truth.field_hz.at(a.image)) for a in maps}


def _fitted_scale(arrivals: Sequence[_Arrival]) -> float:
    """The one factor that brings the magnitudes of all slices that have a truth closest to it."""
    overlap = energy = 0.0
    for arrival in arrivals:
        judged = arrival.reference.any((-2, -1))
        image = magnitude_of(arrival.image)[judged].astype(np.float64)
        overlap += float((image * arrival.reference[judged]).sum())
        energy += float((image**2).sum())
    if not energy > 0:
        raise ValueError("the images are all zero, so no factor brings them to the scale of the truth")
    return overlap / energy


def _planes(
    arrival: _Arrival, scale: float, deviations: Magnitudes | None, fields: Fields | None, seconds: float
) -> Iterator[Plane]:
    """The partitions of an image, each as a slice, where the truth is not zero."""
    images = np.float32(scale) * magnitude_of(arrival.image)
    steps, solver_seconds = solver_report(arrival.image)
    for number, (image, reference) in enumerate(zip(images, arrival.reference, strict=True)):
        if not reference.any():
            continue
        counters = arrival.counters(number)
        deviation = None if deviations is None else deviations[number]
        field = None if fields is None else fields.of_partition(number)
        try:
            compared = compare(image, reference, deviation)
        except ValueError as error:
            raise ValueError(f"{_label(counters)}: {error}") from error
        if field is not None:
            compared |= compare_fields(field, reference)
        figures: Figures = {"seconds": seconds / len(images), "steps": steps, "solver_seconds": solver_seconds}
        yield Plane(counters, image, reference, deviation, field, {**compared, **figures})


def compare(image: Magnitudes, reference: Magnitudes, deviation: Magnitudes | None = None) -> Figures:
    """How far an image `[y, x]` is from the truth.

    Returns:
        psnr (dB), ssim and nmse over the whole slice, with the maximum of the reference as their range; with a
        deviation, also correlation (of error and deviation) and coverage (of the 90 % interval) within the object.

    Raises:
        ValueError: the reference is zero.
    """
    x, r = torch.from_numpy(image), torch.from_numpy(reference)
    figures: Figures = {"psnr": psnr(x, r), "ssim": ssim(x, r), "nmse": nmse(x, r)}
    if deviation is not None:
        d, mask = torch.from_numpy(deviation), object_mask(r[None])[0]
        figures |= {"correlation": error_correlation(x, r, d, mask), "coverage": coverage(x, r, d, mask)}
    return figures


def compare_fields(fields: Fields, magnitude: Magnitudes) -> Figures:
    """How far a field map `[y, x]` is from the truth, within the object.

    Args:
        fields: both.
        magnitude: of the true image, `[y, x]`.

    Returns:
        field_rmse_hz, and field_rmse_hz_weighted by the magnitude; that is None where the object gives no signal.
    """
    inside = np.isfinite(fields.true)
    squared = fields.error[inside].astype(np.float64) ** 2
    weight = magnitude[inside].astype(np.float64)
    return {
        "field_rmse_hz": math.sqrt(squared.mean()),
        "field_rmse_hz_weighted": math.sqrt(np.average(squared, weights=weight)) if weight.any() else None,
    }


def _label(counters: Counters) -> str:
    """Which image it is, for people."""
    return ", ".join(f"{name} {counters[name]}" for name in COUNTERS if name in counters)


def _finite(figures: Figures) -> Figures:
    """For JSON, which has no infinity."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}


def _gadgets(pipeline: str, site: Site) -> list[str]:
    return [stage.gadget for stage in local_definition(pipeline, site).stages]


def _check_zoom(zoom: Zoom, header: Header) -> None:
    top, left, edge = zoom
    for encoding in header.encoding:
        size = encoding.reconSpace.matrixSize
        if min(top, left) < 0 or edge < 1 or top + edge > size.y or left + edge > size.x:
            raise SpinstreamError(
                f"expected a window within the images [y, x] = [{size.y}, {size.x}], got {edge} x {edge} pixels from "
                f"row {top} and column {left}"
            )


def _check_truth(job: Evaluation, raw: RawFile, header: Header) -> None:
    """That it is of the slices that the raw data give; what pipelines make of them is held against it once more."""
    try:
        images = expected_images(raw, header)
        if images:
            job.truth.places.check(images)
    except ValueError as error:
        raise SpinstreamError(f"the truth {job.truth.name} does not fit {job.raw.name}: {error}") from error


def _check_parameters(job: Evaluation, site: Site) -> None:
    """That some pipeline has the gadget of each, and that all pipelines that can run take their values."""
    known: set[str] = set()
    for pipeline in job.pipelines:
        known.update(_gadgets(pipeline, site))
    for key in job.parameters:
        gadget, dot, _ = key.partition(".")
        if not dot or gadget not in known:
            raise PipelineError(
                f"--set: {key}: expected gadget.property with a gadget of one of the pipelines{nearest(gadget, known)}"
            )
    for pipeline in job.pipelines:
        definition = local_definition(pipeline, site)
        if _can_run(definition, site):
            definition.override(_parameters_of(pipeline, job, site), "--set", local=True).build(site.registry)


def _can_run(definition: Definition, site: Site) -> bool:
    """As it stands; one that cannot is reported in its turn."""
    try:
        definition.build(site.registry)
    except PipelineError:
        return False
    return True


def _parameters_of(pipeline: str, job: Evaluation, site: Site) -> dict[str, str]:
    """Those of its gadgets."""
    gadgets = _gadgets(pipeline, site)
    return {key: value for key, value in job.parameters.items() if key.partition(".")[0] in gadgets}
