"""The page of an evaluation: a table, the figures of each slice, and pictures of what the pipelines made of it.

`index.html` needs nothing but the pictures beside it.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.errors import FileError
from pipelines.evaluate import COUNTERS, Evaluation, Outcome, Plane, Zoom
from pipelines.sinks.folder import output_folder
from pipelines.truth import Magnitudes
from recon_core.object_mask import object_mask

PAGE, METRICS, CURVES = "index.html", "metrics.json", "curves.png"

BRIGHTEST = 99.8
"""Percent of the reference's pixels that its pictures show unsaturated."""

LARGEST_ERROR = 99.5
"""Percentile of a map that counts as its large values."""

LARGEST_OF_BEST = 2.0
"""End of the scale of error maps, over the large values of the best pipeline's."""

INCHES = 2.2
"""Edge of one picture on the page."""

ERROR_PER_DEVIATION = 1 / math.sqrt(2)
"""The part of the complex error that a magnitude sees."""


@dataclass(frozen=True)
class Column:
    """How a figure is shown."""

    title: str
    form: str


@dataclass(frozen=True)
class Row:
    """Maps `[y, x]` that are shown on one scale: the reference's, if any, then the pipelines'.

    Attributes:
        title: beside them; without one there is no colour bar.
        maps: what is not a number stays blank.
        smallest, largest: ends of the scale.
        colours: matplotlib's name of them.
        unit: of the scale.
    """

    title: str
    maps: Sequence[Magnitudes | None]
    largest: float
    smallest: float = 0.0
    colours: str = "magma"
    unit: str = "% of the maximum"


COLUMNS = {
    "psnr": Column("PSNR / dB", ".2f"),
    "ssim": Column("SSIM", ".4f"),
    "nmse": Column("NMSE", ".5f"),
    "seconds": Column("seconds per slice", ".3g"),
    "steps": Column("steps", ".4g"),
    "solver_seconds": Column("solver seconds", ".3g"),
    "correlation": Column("correlation of error and deviation", ".3f"),
    "coverage": Column("coverage of the 90 % interval", ".3f"),
    "field_rmse_hz": Column("field error / Hz", ".2f"),
    "field_rmse_hz_weighted": Column("weighted field error / Hz", ".2f"),
}
"""By the name of the figure; one that is not here is shown under its name."""

JUDGED = ("psnr", "ssim", "nmse")
"""What is drawn for every slice, and told at the command line."""

SMALLEST_WINDOW = 8
"""Edge in pixels."""

TEMPLATE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
small { color: #777; }
.error { color: #a00; white-space: pre-wrap; }
.note { color: #850; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$basis</p>
$failures
$notes
$table
<p><small>$definitions</small></p>
$curves
<h2>Pictures</h2>
<p><small>$legend</small></p>
$pictures
<h2>Slices</h2>
$slices
</body>
</html>
""")

DEFINITIONS = (
    "Mean &plusmn; standard deviation over the slices. PSNR and SSIM (uniform window of 7 pixels) of magnitudes over "
    "the whole slice, range: the maximum of the reference; NMSE = |x &minus; ref|&sup2; / |ref|&sup2;. Seconds: from "
    "one image to the next, the whole pipeline without its start-up; solver seconds and steps: as the history of the "
    "image says. Correlation and coverage: within the object; exact draws of the posterior would cover 0.81 if there "
    "are 4 of them, 0.88 if there are 16. Field error: root mean square of estimate minus truth within the object; "
    "weighted: by the true magnitude."
)

LEGEND = (
    "The frame marks the zoomed window, the same for all pipelines. Errors: |magnitude &minus; reference| in percent "
    "of the maximum of the reference, on one scale, which ends at twice the large errors of the best pipeline. "
    "Predicted errors, where a pipeline sends a deviation: the standard deviation of the magnitude, 1/&radic;2 of that "
    "of the complex image, on the scale of the errors: where they are darker, the pipeline is too sure of itself. "
    "Fields, where a pipeline sends a map: off-resonance &psi; in Hz, signal ~ exp(&minus;2&pi;i&psi;t), within the "
    "object; the scale of their errors ends at twice the large errors of the best pipeline."
)


def report_folder(folder: Path, overwrite: bool) -> Path:
    """The folder of a report, made where it does not exist.

    Raises:
        FileError: it cannot be made, or there is a page in it that may not be overwritten.
    """
    try:
        return output_folder(folder, ".html", overwrite)
    except OSError as error:
        raise FileError(str(error)) from error


def write_report(folder: Path, job: Evaluation, outcomes: Mapping[str, Outcome]) -> None:
    """Writes metrics, pictures and page.

    Args:
        folder: where to.
        job: what was compared.
        outcomes: by pipeline.

    Raises:
        FileError: something cannot be written.
    """
    metrics = {name: outcome.to_json() for name, outcome in outcomes.items()}
    pictures: dict[str, str] = {}
    try:
        (folder / METRICS).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        for label, planes in _by_slice(outcomes).items():
            pictures[label] = _picture_name(planes)
            _picture(planes, job.zoom).savefig(folder / pictures[label], dpi=_dpi(planes))
        curves = CURVES if len(pictures) > 1 else None
        if curves:
            _curves(outcomes).savefig(folder / curves, dpi=110)
        (folder / PAGE).write_text(_page(job, outcomes, pictures, curves), encoding="utf-8")
    except OSError as error:
        raise FileError(f"the report is not complete: {error}") from error


def summary(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """One line of text for each pipeline."""
    for name, outcome in outcomes.items():
        known = [key for key in (*JUDGED, "field_rmse_hz", "seconds") if key in outcome.mean]
        figures = ", ".join(f"{COLUMNS[key].title} {_mean(outcome, key)}" for key in known)
        yield f"{name}: {figures if outcome.error is None else 'failed, as told above'}"


def _page(job: Evaluation, outcomes: Mapping[str, Outcome], pictures: Mapping[str, str], curves: str | None) -> str:
    names = ", ".join(outcomes)
    return TEMPLATE.substitute(
        title=escape(f"{job.raw.name}: {names}"),
        basis=escape(_basis(job)),
        failures="".join(
            f'<p class="error">{escape(f"{name} failed: {outcome.error}")}</p>\n'
            for name, outcome in outcomes.items()
            if outcome.error is not None
        ),
        notes="".join(
            f'<p class="note">{escape(f"{name}: {text}")}</p>\n'
            for name, outcome in outcomes.items()
            for text in outcome.notes
        ),
        table=_means_table(outcomes),
        definitions=DEFINITIONS,
        curves=f'<p><img src="{curves}" alt="PSNR, SSIM and NMSE of each slice"></p>' if curves else "",
        legend=LEGEND,
        pictures="\n".join(
            f'<h3>{escape(label)}</h3>\n<a href="{file}"><img src="{file}" loading="lazy" alt="{escape(label)}"></a>'
            for label, file in pictures.items()
        ),
        slices=_slices_table(outcomes),
    )


def _basis(job: Evaluation) -> str:
    """What is compared with what."""
    if job.truth.own:
        how = "the file's own; no factor is fitted"
        if job.truth.whitened:
            how += ", it is shaded as prewhitened images of maps of unit norm are"
    else:
        how = "one real factor per pipeline brings its images to this scale (least squares of magnitudes, all slices)"
    settings = ", ".join(f"{key}={value}" for key, value in job.parameters.items())
    return f"Truth: {job.truth.name}, {how}.{f' Set: {settings}.' if settings else ''}"


def _means_table(outcomes: Mapping[str, Outcome]) -> str:
    keys = _figure_names(outcomes)
    head = ["pipeline", *(_title(key) for key in keys), "factor"]
    rows = [
        [name, *(_mean(outcome, key, _spread(outcome, key)) for key in keys), f"{outcome.scale:.4g}"]
        for name, outcome in outcomes.items()
        if outcome.error is None
    ]
    return _table(head, rows)


def _slices_table(outcomes: Mapping[str, Outcome]) -> str:
    keys = _figure_names(outcomes)
    rows = [
        [plane.label, name, *(_number(plane.figures.get(key), key) for key in keys)]
        for name, outcome in outcomes.items()
        for plane in outcome.planes
    ]
    order = list(_by_slice(outcomes))
    rows.sort(key=lambda row: order.index(row[0]))
    return _table(["slice", "pipeline", *(_title(key) for key in keys)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(head, "th"), *(line(row, "td") for row in rows), "</table>"])


def _figure_names(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Of all pipelines, in the order of the columns; others follow."""
    found = {name for outcome in outcomes.values() for name in outcome.mean}
    return [*(name for name in COLUMNS if name in found), *sorted(found - set(COLUMNS))]


def _title(key: str) -> str:
    return COLUMNS[key].title if key in COLUMNS else key


def _number(value: float | None, key: str) -> str:
    return "\N{EN DASH}" if value is None else format(value, COLUMNS[key].form if key in COLUMNS else ".4g")


def _mean(outcome: Outcome, key: str, spread: float | None = None) -> str:
    mean = _number(outcome.mean.get(key), key)
    return mean if spread is None else f"{mean} \N{PLUS-MINUS SIGN} {_number(spread, key)}"


def _spread(outcome: Outcome, key: str) -> float | None:
    """What is the same in all slices has none worth showing."""
    return outcome.spread.get(key) or None


def _by_slice(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Plane]]:
    """Planes by slice, then by pipeline."""
    slices: dict[str, dict[str, Plane]] = {}
    for name, outcome in outcomes.items():
        for plane in outcome.planes:
            slices.setdefault(plane.label, {})[name] = plane
    return slices


def _curves(outcomes: Mapping[str, Outcome]) -> Figure:
    """The figures of every slice."""
    labels = list(_by_slice(outcomes))
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(JUDGED)), JUDGED, strict=True):
        for name, outcome in outcomes.items():
            if outcome.planes:
                places = [labels.index(plane.label) for plane in outcome.planes]
                values = [plane.figures[key] for plane in outcome.planes]
                axes.plot(places, values, "o-", markersize=4, label=_plain(name))
        axes.set_title(_title(key))
        axes.set_xlabel("image, in the order of the table" if any("," in label for label in labels) else "slice")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    if all(line.get_ydata().min() > 0 for line in axes.lines):
        axes.set_yscale("log")  # of the NMSE, which may be 0 of images that are the truth
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _picture_name(planes: Mapping[str, Plane]) -> str:
    """ "slice_003_repetition_001.png"."""
    counters = next(iter(planes.values())).counters
    return "_".join(f"{name}_{counters[name]:03d}" for name in COUNTERS if name in counters) + ".png"


def _picture(planes: Mapping[str, Plane], zoom: Zoom | None) -> Figure:
    """Rows: images, errors, predicted errors and fields, each with its zoom below; columns: reference, pipelines."""
    shown = list(planes.values())
    reference = shown[0].reference
    percent = np.float32(100 / reference.max())
    errors = [percent * np.abs(plane.image - reference) for plane in shown]
    predicted = [None if p.deviation is None else percent * ERROR_PER_DEVIATION * p.deviation for p in shown]
    deviating = any(plane.deviation is not None for plane in shown)
    brightest = float(np.percentile(reference, BRIGHTEST)) or float(reference.max())
    largest = LARGEST_OF_BEST * _smallest_peak(errors)
    rows = [
        Row("", [reference, *(plane.image for plane in shown)], brightest, colours="gray"),
        Row("error", [None, *errors], largest),
        *([Row("predicted error", [None, *predicted], largest)] if deviating else []),
        *_field_rows(shown),
    ]
    window = zoom or interesting_window([plane.image for plane in shown], reference)
    # Whole images are as high as they are, zoomed windows are square.
    heights = len(rows) * [reference.shape[0] / reference.shape[1], 1.0]
    size = INCHES * (len(shown) + 1.3), INCHES * (sum(heights) + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(heights), len(shown) + 1, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, row in enumerate(rows):
        _draw_row(figure, row, grid[2 * number : 2 * number + 2], window)
    grid[0, 0].set_title("reference\n", fontsize=10)
    for axes, (name, plane) in zip(grid[0, 1:], planes.items(), strict=True):
        axes.set_title(f"{_wrapped(name)}\n{_number(plane.figures['psnr'], 'psnr')} dB", fontsize=10)
    return figure


def _field_rows(planes: Sequence[Plane]) -> list[Row]:
    """The field and its errors, where a pipeline sends one."""
    fields = [plane.fields for plane in planes]
    known = [each for each in fields if each is not None]
    if not known:
        return []
    true = known[0].true
    shown = [None if each is None else np.where(np.isfinite(true), each.estimated, np.nan) for each in fields]
    errors = [None if each is None else each.error for each in fields]
    largest = float(np.nanmax(np.abs(true), initial=0.0)) or 1.0
    largest_error = LARGEST_OF_BEST * _smallest_peak([None if each is None else np.abs(each) for each in errors])
    return [
        Row("field", [true, *shown], largest, -largest, "coolwarm", "Hz"),
        Row("error of the field", [None, *errors], largest_error, -largest_error, "coolwarm", "Hz"),
    ]


def _draw_row(figure: Figure, row: Row, grid: NDArray[np.object_], window: Zoom) -> None:
    """A row of maps and the row of their zooms."""
    top, left, edge = window
    for (whole, zoomed), values in zip(grid.T, row.maps, strict=True):
        if values is None:
            continue
        for axes, part in ((whole, values), (zoomed, values[top : top + edge, left : left + edge])):
            drawn = axes.imshow(part, cmap=row.colours, vmin=row.smallest, vmax=row.largest, interpolation="nearest")
        frame = Rectangle((left - 0.5, top - 0.5), edge, edge, fill=False, edgecolor="#ffb000", linewidth=1)
        whole.add_patch(frame)
    if row.title:
        extend = "both" if row.smallest < 0 else "max"
        figure.colorbar(drawn, ax=list(grid[:, -1]), label=row.unit, extend=extend, shrink=0.8)
        place = 0.96 if row.maps[0] is None else -0.04
        beside = {"ha": "right", "va": "center", "rotation": "vertical", "fontsize": 10}
        grid[0, 0].text(place, 0.5, row.title, transform=grid[0, 0].transAxes, **beside)


def _smallest_peak(maps: Sequence[Magnitudes | None]) -> float:
    """Of the map whose large values are smallest: a poor pipeline must not hide what the good ones do."""
    return min(float(np.nanpercentile(values, LARGEST_ERROR)) for values in maps if values is not None) or 1.0


def interesting_window(images: Sequence[Magnitudes], reference: Magnitudes) -> Zoom:
    """The square of a quarter of the shorter edge in which images `[y, x]` differ most within the object.

    A single image is held against the reference.
    """
    together = np.stack([*images, *([reference] if len(images) == 1 else [])])
    # Noise alone is not interesting.
    together = ndimage.gaussian_filter(together, (0, 1.5, 1.5))
    inside = object_mask(torch.from_numpy(reference[None]))[0].numpy()
    difference = together.std(0) * inside
    edge = max(min(reference.shape) // 4, min(SMALLEST_WINDOW, *reference.shape))
    sums = np.lib.stride_tricks.sliding_window_view(difference, (edge, edge)).sum((-2, -1))
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left), edge


def _dpi(planes: Mapping[str, Plane]) -> float:
    """At which no pixel is lost."""
    width = next(iter(planes.values())).reference.shape[1]
    return float(max(100.0, 1.1 * width / INCHES))


def _wrapped(name: str) -> str:
    return _plain(textwrap.fill(name, 24))


def _plain(name: str) -> str:
    """Without a meaning of its own for matplotlib, which takes $ for mathematics."""
    return name.replace("$", r"\$")
