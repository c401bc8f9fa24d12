"""Runs one scan through several pipelines and says how far their images are from the truth.

Everything is measured on what leaves a pipeline: magnitudes on the reconstruction grid, pixels over their
ImageScaleFactor. `metrics.json` holds for each pipeline the means over its slices, and beside them

    scale   the factor that its images were multiplied by: fitted to a truth that is brought, 1 for the file's own
    spread  standard deviations over the slices
    slices  the same figures of each slice, with its number and its other counters, counted from 0

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

from gadgets.gadget import Header
from gadgets.image_export import SERIES
from gadgets.noise_prewhitening import NoisePrewhitening
from pipelines.errors import PipelineError, SpinstreamError
from pipelines.image_series import images_of_main_series, kind_of, magnitude_of, solver_report
from pipelines.registry import nearest
from pipelines.replay import Progress, Replay, local_definition, replay_here
from pipelines.session import Site, read_header
from pipelines.streams.file import RawFile
from pipelines.truth import Magnitudes, Truth
from recon_core.cache import ContentCache
from recon_core.metrics import coverage, error_correlation, nmse, psnr, ssim
from recon_core.simulation import object_mask

Figures: TypeAlias = dict[str, float | None]

Zoom: TypeAlias = tuple[int, int, int]
"""First row, first column and edge of a square window, in pixels."""

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
class Plane:
    """One slice as a pipeline sent it, on the scale of the truth.

    Attributes:
        counters: its slice, and those of its other counters that are not 0.
        image: magnitudes `[y, x]`.
        reference: those of the truth.
        deviation: standard deviation of the complex image, where the pipeline sends one.
        figures: by name.
    """

    counters: Mapping[str, int]
    image: Magnitudes
    reference: Magnitudes
    deviation: Magnitudes | None
    figures: Figures


@dataclass(frozen=True)
class Outcome:
    """What became of one pipeline.

    Attributes:
        scale: the factor that its images were multiplied by.
        planes: in the order of their counters; none where it failed.
        error: why it failed.
    """

    scale: float = 1.0
    planes: tuple[Plane, ...] = ()
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
        return {**_finite(self.mean), "scale": self.scale, "spread": _finite(self.spread), "slices": slices}


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
        PipelineError: there is no such pipeline, or none of them has the gadget of a parameter.
        SpinstreamError: the raw file cannot be read, or the zoomed window does not lie within its images.
    """
    _check_parameters(job, site)
    outcomes = {}
    with RawFile(job.raw, job.group) as raw:
        if job.zoom is not None:
            _check_zoom(job.zoom, read_header(raw.header_xml))
        for pipeline in job.pipelines:
            fresh = replace(site, cache=ContentCache(site.cache.limit_bytes))
            try:
                outcomes[pipeline] = _outcome(job, pipeline, raw, fresh, note, show)
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


def _outcome(
    job: Evaluation, pipeline: str, raw: RawFile, site: Site, note: Callable[[str], None], show: Progress
) -> Outcome:
    gadgets = _gadgets(pipeline, site)
    if job.truth.whitened and NoisePrewhitening.__name__ not in gadgets:
        raise PipelineError(f"expected {NoisePrewhitening.__name__}, on whose scale the truth of {job.truth.name} is")
    parameters = {key: value for key, value in job.parameters.items() if key.partition(".")[0] in gadgets}
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
    deviations = {
        arrival.key: scale * magnitude_of(arrival.image)
        for arrival in arrivals
        if kind_of(arrival.image) == SERIES["deviation"].description
    }
    planes: list[Plane] = []
    before = 0.0
    for arrival in judged:
        planes += _planes(arrival, scale, deviations.get(arrival.key), arrival.seconds - before)
        before = arrival.seconds
    found = {plane.counters["slice"] for plane in planes}
    if truth.places.count not in (None, len(found)):
        listed = ", ".join(map(str, sorted(found)))
        raise ValueError(f"expected the {truth.places.count} slices of the truth, got slices {listed}, counted from 0")
    return Outcome(scale, tuple(sorted(planes, key=lambda plane: [plane.counters.get(name, 0) for name in COUNTERS])))


def _fitted_scale(arrivals: Sequence[_Arrival]) -> float:
    """The one factor that brings the magnitudes of all images closest to the truth."""
    images = [magnitude_of(arrival.image).astype(np.float64) for arrival in arrivals]
    energy = sum(float((image**2).sum()) for image in images)
    if not energy > 0:
        raise ValueError("the images are all zero, so no factor brings them to the scale of the truth")
    return sum(float((i * a.reference).sum()) for i, a in zip(images, arrivals, strict=True)) / energy


def _planes(arrival: _Arrival, scale: float, deviations: Magnitudes | None, seconds: float) -> Iterator[Plane]:
    """The partitions of an image, each as a slice."""
    images = np.float32(scale) * magnitude_of(arrival.image)
    steps, solver_seconds = solver_report(arrival.image)
    for number, (image, reference) in enumerate(zip(images, arrival.reference, strict=True)):
        counters = {name: value for name, value in zip(COUNTERS, arrival.key, strict=True) if value}
        counters = {**counters, "slice": arrival.key[0] * len(images) + number}
        deviation = None if deviations is None else deviations[number]
        try:
            compared = compare(image, reference, deviation)
        except ValueError as error:
            raise ValueError(f"slice {counters['slice']}: {error}") from error
        figures: Figures = {"seconds": seconds / len(images), "steps": steps, "solver_seconds": solver_seconds}
        yield Plane(counters, image, reference, deviation, {**compared, **figures})


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


def _check_parameters(job: Evaluation, site: Site) -> None:
    """That some pipeline has the gadget of each."""
    known: set[str] = set()
    for pipeline in job.pipelines:
        known.update(_gadgets(pipeline, site))
    for key in job.parameters:
        gadget, dot, _ = key.partition(".")
        if not dot or gadget not in known:
            raise PipelineError(
                f"--set: {key}: expected gadget.property with a gadget of one of the pipelines{nearest(gadget, known)}"
            )
