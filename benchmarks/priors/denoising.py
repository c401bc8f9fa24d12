"""Who denoises how well: tables of priors, total variation and BM3D, and whether the priors are calibrated.

    python -m benchmarks.priors.denoising --test heads/test --tune heads/val --other ../shared/data
        [--priors NAME,NAME] [--slices 24] [-o FILE.md] [--picture FILE.png]

The heads come from `python -m benchmarks.priors.heads`. What the opponents reached is kept in FILE.opponents.json
beside FILE.md, so that a second run is quick; delete it where their settings, the images or the noise have changed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from statistics import mean, median, pstdev

import torch
from skimage.restoration import estimate_sigma
from torch import Tensor

from benchmarks.priors import opponents
from benchmarks.priors.calibration import levels, slope
from benchmarks.priors.images import Sample, held_out, other_contrasts, samples
from benchmarks.priors.joint_tv import joint_tv
from benchmarks.priors.picture import draw
from recon_core.metrics import psnr, ssim
from recon_core.priors.library import load_prior, shipped_priors
from recon_core.priors.prior import Prior

SIGMAS = (0.025, 0.05, 0.1, 0.2, 0.4)
PICTURED = 0.1
TUNING_SLICES = 8
CALIBRATED = 0.02  # the greatest distance of a slope from one

# Gives nothing for a noise level that it does not know.
Method = Callable[[Sample], Tensor | None]
# Of one image: PSNR in dB, SSIM, seconds. By row and noise level, of each image.
Score = tuple[float, float, float]
Scores = dict[str, dict[float, list[Score]]]


class Kept:
    """Results that need not be computed again, in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, key: str, compute: Callable[[], object]) -> object:
        """What the key stands for, computed the first time."""
        if key not in self._results:
            self._results[key] = compute()
            if self._path:
                self._path.write_text(json.dumps(self._results, indent=1))
        return self._results[key]


def opponent_methods(tuning: list[Tensor], kept: Kept) -> dict[str, Method]:
    """The rows that are no priors; total variation with the weight that is best for the tuning images."""
    methods: dict[str, Method] = {"noisy": lambda sample: sample.noisy}
    for name, solver in (("TV, joint", joint_tv), ("TV, scikit-image", opponents.channel_tv)):
        weights = {}
        for sigma in SIGMAS:
            key = f"weight of {name} at {sigma} by {len(tuning)} slices"
            weights[sigma] = kept.get(key, partial(opponents.tuned_weight, solver, tuning, sigma))
        methods[name] = lambda s, solver=solver, weights=weights: solver(s.noisy, weights[s.sigma])
    if opponents.bm3d_package is None:
        print("skipped BM3D: the package bm3d is not installed", file=sys.stderr)
    else:
        methods["BM3D"] = opponents.bm3d
    return methods


def prior_method(prior: Prior) -> Method:
    """Told the noise level in the prior's own units; of the clean image it learns the scale only."""

    def denoise(sample: Sample) -> Tensor | None:
        unit = float(prior.convention.unit(sample.clean))
        if not prior.convention.lowest <= sample.sigma / unit <= prior.convention.highest:
            return None
        return prior.denoise(sample.noisy / unit, sample.sigma / unit) * unit

    return denoise


def scored(method: Method, images: list[Tensor], sigma: float) -> list[Score]:
    """Of every image, or of none where one was not denoised."""
    scores = []
    for sample in samples(images, sigma):
        began = time.perf_counter()
        denoised = method(sample)
        seconds = time.perf_counter() - began
        if denoised is None:
            return []
        scores.append((psnr(denoised, sample.clean), ssim(denoised, sample.clean), seconds))
    return scores


def all_scores(
    classical: dict[str, Method], learnt: dict[str, Method], name: str, images: list[Tensor], kept: Kept
) -> Scores:
    """Of every row at every noise level on one set of images."""
    scores: Scores = {}
    for row, method in (classical | learnt).items():
        print(f"{name}: {row}", file=sys.stderr)
        for sigma in SIGMAS:
            compute = partial(scored, method, images, sigma)
            found = compute() if row in learnt else kept.get(f"{row} at {sigma} on {len(images)} of {name}", compute)
            scores.setdefault(row, {})[sigma] = found
    return scores


def together(parts: list[Scores]) -> Scores:
    """The scores of several sets of images as those of one, where a row has scores of them all."""

    def joined(row: str, sigma: float) -> list[Score]:
        found = [part[row][sigma] for part in parts]
        return list(chain.from_iterable(found)) if all(found) else []

    return {row: {sigma: joined(row, sigma) for sigma in SIGMAS} for row in parts[0]}


def markdown(corner: str, header: list[str], rows: dict[str, list[str]]) -> str:
    """A table; the first column holds the names of the rows."""
    width = max(len(name) for name in (corner, *rows))
    lines = [f"| {corner:{width}} | " + " | ".join(header) + " |", f"|{'-' * (width + 2)}|" + "---:|" * len(header)]
    return "\n".join(lines + [f"| {name:{width}} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def cell(values: list[float], digits: int) -> str:
    """Mean and, of several images, standard deviation."""
    if not values:
        return "-"
    spread = f" ± {pstdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def by_level(title: str, scores: Scores, which: int, digits: int) -> str:
    """The table of one figure (`which` of a `Score`) at all noise levels."""
    rows = {
        row: [cell([score[which] for score in found[sigma]], digits) for sigma in SIGMAS]
        for row, found in scores.items()
    }
    return markdown(title, [f"{sigma:g}" for sigma in SIGMAS], rows)


def by_source(scores: dict[str, Scores]) -> str:
    """PSNR at one noise level, for each set of images."""
    names = next(iter(scores.values()))
    rows = {row: [cell([s[0] for s in found[row][PICTURED]], 2) for found in scores.values()] for row in names}
    return markdown(f"PSNR in dB at {PICTURED:g}", list(scores), rows)


def times(scores: Scores) -> str:
    """Median seconds per image."""
    found = {
        row: [score[2] for level in by.values() for score in level] for row, by in scores.items() if row != "noisy"
    }
    return markdown("time", ["s per slice"], {row: [f"{median(all_):.2f}"] for row, all_ in found.items() if all_})


def calibration(priors: list[Prior], images: list[Tensor]) -> str:
    """Slopes of the true against the predicted noise; one table for the priors of one convention."""
    parts = []
    for convention in dict.fromkeys(prior.convention for prior in priors):
        alike = [prior for prior in priors if prior.convention == convention]
        slopes = {}
        for prior in alike:
            print(f"calibration: {prior.name}", file=sys.stderr)
            slopes[prior.name] = [slope(prior, images, level) for level in levels(convention)]
        rows = {
            f"{level:.3g}": [f"{found[i]:.4f}" for found in slopes.values()]
            for i, level in enumerate(levels(convention))
        }
        worst = [max(abs(s - 1) for s in found) for found in slopes.values()]
        verdicts = ["within" if w <= CALIBRATED else "**not within**" for w in worst]
        rows["farthest from 1"] = [f"{w:.2%}, {v} {CALIBRATED:.0%}" for w, v in zip(worst, verdicts, strict=True)]
        parts.append(markdown(f"noise level ({convention.scale})", list(slopes), rows))
    return "\n\n".join(parts)


def machine() -> str:
    """What it ran on."""
    packages = ["torch", "numpy", "scikit-image", "bm3d"]
    found = [f"{name} {installed(name)}" for name in packages]
    return (
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(found)
    )


def installed(package: str) -> str:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def report(heads: list[Tensor], scores: Scores, other: dict[str, Scores], calibrated: str) -> str:
    """The page."""
    counts = {name: len(found["noisy"][PICTURED]) for name, found in other.items()}
    parts = [
        f"`python -m benchmarks.priors.denoising {shlex.join(sys.argv[1:])}`: {machine()}.",
        f"""\
{len(heads)} held-out slices of 256 x 256, spread evenly through the test set, with a random smooth phase of another
family than that of training. The noise is white, with the standard deviation sigma per real channel of an image whose
magnitude has a 99th percentile of one, and the same for all rows. PSNR (peak of the slice) and SSIM of magnitudes over
the whole field of view: mean and standard deviation over slices. TV is tuned for each sigma by the PSNR of
{TUNING_SLICES} validation slices, to a factor of 2^(1/4); joint TV (ours) couples real and imaginary part,
scikit-image's and BM3D take one after the other. BM3D runs in its package's profile for low complexity.""",
        by_level("PSNR in dB", scores, 0, 2),
        by_level("SSIM", scores, 1, 3),
        own_noise(heads),
        f"""\
Another contrast, which no training saw, and other pixels: {", ".join(f"{name} ({n})" for name, n in counts.items())}.
TV keeps the weights that are best for the heads above.""",
        by_level("PSNR in dB", together(list(other.values())), 0, 2),
        by_level("SSIM", together(list(other.values())), 1, 3),
        by_source(other),
        f"""\
Calibration: slope of the true noise against the predicted noise, a regression through the origin over all pixels of the
{len(heads)} slices. It is one for the posterior mean.""",
        calibrated,
        times(scores),
    ]
    return "\n\n".join(parts)


def own_noise(heads: list[Tensor]) -> str:
    """How far the truth can be trusted."""
    own = median(float(estimate_sigma(image.abs().numpy())) for image in heads)
    peak = median(float(image.abs().max()) for image in heads)
    return f"""\
The slices came from JPEG files and have noise of their own: {own:.4f} by scikit-image's estimate, which sees too little
where JPEG dropped fine detail. It counts as truth here, so that a denoiser that removes it as well cannot get above
{20 * math.log10(peak / own):.0f} dB, and at the lowest sigma the rows differ in part by how much of it they keep."""


def pictured(methods: dict[str, Method], sample: Sample) -> tuple[Sample, dict[str, Tensor]]:
    """A sample and what comes of it."""
    images = {name: method(sample) for name, method in methods.items() if name != "TV, scikit-image"}
    return sample, {name: image for name, image in images.items() if image is not None}


def main() -> None:
    """Prints or writes the page, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=Path, required=True, help="folder of held-out slices")
    parser.add_argument("--tune", type=Path, required=True, help="folder of the slices that TV is tuned on")
    parser.add_argument("--other", type=Path, required=True, help="folder with train/, b0maps/ and cases/")
    parser.add_argument("--priors", help="names or files, with commas between; those of the package by default")
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    names = chosen.priors.split(",") if chosen.priors else list(shipped_priors())
    priors = [load_prior(name) for name in names]
    kept = Kept(chosen.output and chosen.output.with_suffix(".opponents.json"))

    heads = held_out(chosen.test, chosen.slices)
    others = other_contrasts(chosen.other, count=max(1, chosen.slices // 3))
    classical = opponent_methods(held_out(chosen.tune, TUNING_SLICES), kept)
    learnt = {prior.name: prior_method(prior) for prior in priors}
    scores = all_scores(classical, learnt, "heads", heads, kept)
    other = {name: all_scores(classical, learnt, name, images, kept) for name, images in others.items()}
    page = report(heads, scores, other, calibration(priors, heads))
    if chosen.output:
        chosen.output.write_text(page + "\n")
    print(page)
    if chosen.picture:
        shown = heads, others["echo planar head"]
        rows = [samples(images, PICTURED)[len(images) // 2] for images in shown]
        draw([pictured(classical | learnt, sample) for sample in rows], chosen.picture)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
