"""Paper 000's comparison on held-out heads: image and field map found together, beside no map and the true one.

    python -m benchmarks.blind.field_maps --test heads/test --maps b0maps -o FILE.md
        [--fields order5_60 ...] [--methods blind ...] [--slices 20] [--matrix 128] [--snr 50] [--minutes 8]

The scans are those of `benchmarks.blind.problems`: the exact signal of a finer object, coil maps from the centre of the
same noisy spiral. What is measured are the gadgets, as a pipeline holds them. Every score is kept in FILE.scores.json
beside FILE.md, so that a run which was interrupted, or whose minutes were over, goes on where it was: those of
RESULTS.md are `benchmarks/scores/field_maps.scores.json`. Delete them where methods have changed.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import ismrmrd
import torch
from torch import Tensor

from benchmarks.blind.problems import FIELDS, BlindScan, scanned
from benchmarks.priors.denoising import cell, machine, markdown
from benchmarks.priors.images import held_out
from benchmarks.solvers.problems import FOV_M
from benchmarks.solvers.tables import KeptInTime
from gadgets.blind_solver import BlindSolver
from gadgets.cg_sense import CgSense
from gadgets.diffusion_solver import DiffusionSolver
from gadgets.frame import Frame, Samples, SeriesImage, Space
from gadgets.gadget import Gadget, Session
from gadgets.preview import Preview
from recon_core.cache import ContentCache
from recon_core.metrics import nrmse, psnr, ssim

CACHE = ContentCache(2 << 30)

TOLD_HZ = 350.0
"""Within which the true map is told: only beside the head polynomials go beyond, and a wide range costs minutes."""


class Method(NamedTuple):
    """A gadget, whether it is given the true field, and which of its series is the image."""

    gadget: Callable[[], Gadget[Any]]
    told: bool = False
    series: str = "image"


METHODS = {
    "adjoint, no map": Method(Preview, series="preview"),
    "cg_sense, no map": Method(CgSense),
    "default, no map": Method(partial(DiffusionSolver, samples=1)),
    "algorithm 1": Method(partial(BlindSolver, method="red_diff", samples=1)),
    "blind": Method(partial(BlindSolver, samples=1)),
    "blind, and coils": Method(partial(BlindSolver, samples=1, refine_coil_maps=True)),
    "default, true map": Method(partial(DiffusionSolver, samples=1), told=True),
}


class Score(NamedTuple):
    """Of one slice; errors of the field in Hz within the object, root mean square, plain and weighted by the image."""

    psnr: float
    ssim: float
    nrmse: float
    field_hz: float
    weighted_hz: float
    covered: float
    seconds: float


def frame_of(scan: BlindScan) -> Frame:
    """The scan as gadgets meet it."""
    n = scan.truth.shape[-1]
    grid = (1, n, n), (5.0, 1000 * FOV_M, 1000 * FOV_M)
    return Frame(
        samples=Samples(scan.kspace, scan.trajectory),
        times=scan.times,
        space=Space(*grid, *grid),
        reference=ismrmrd.AcquisitionHeader(),
        coil_maps=scan.coil_maps,
    )


def score(scan: BlindScan, method: Method, seed: int) -> Score:
    """Of a method on a scan."""
    frame = frame_of(scan)
    if method.told:
        frame = replace(frame, field_map=scan.field_hz.clamp(-TOLD_HZ, TOLD_HZ))
    gadget = method.gadget()
    gadget.open(Session(header=None, seed=seed, cache=CACHE))  # type: ignore[arg-type]
    began = time.perf_counter()
    series = [item for item in (*gadget.take(frame), *gadget.finish()) if isinstance(item, SeriesImage)]
    seconds = time.perf_counter() - began
    found = {item.kind: item.data for item in series}
    image = found[method.series].abs()
    field = found.get("field_map", scan.field_hz if method.told else torch.zeros_like(scan.field_hz))
    error = (field - scan.field_hz)[scan.mask]
    covered = float("nan")
    if "field_deviation" in found:
        covered = float((error.abs() < 1.645 * found["field_deviation"][scan.mask]).double().mean())
    weight = scan.truth.abs()[scan.mask]
    truth = scan.truth
    return Score(
        psnr(image, truth), ssim(image, truth), nrmse(image, truth.abs()), float(error.square().mean().sqrt()),
        float(((error * weight).square().sum() / weight.square().sum()).sqrt()), covered, seconds,
    )  # fmt: skip


def table(found: dict[str, list[Score]]) -> str:
    """One case, in markdown."""
    header = ["slices", "PSNR, dB", "SSIM", "NRMSE", "field, Hz", "weighted, Hz", "covered by 90 %", "seconds"]
    digits = (2, 3, 3, 1, 1, 2, 0)
    rows = {
        method: [
            str(len(scores)),
            *(cell([s[i] for s in scores if not math.isnan(s[i])], d) for i, d in enumerate(digits)),
        ]
        for method, scores in found.items()
        if scores
    }
    return markdown("", header, rows)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--maps", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--fields", nargs="+", choices=FIELDS, default=FIELDS)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=128)
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    kept = KeptInTime(given.output.with_suffix(".scores.json"), given.minutes)
    found: dict[str, dict[str, list[Score]]] = {kind: {m: [] for m in given.methods} for kind in given.fields}
    images: list[Tensor] = held_out(given.test, given.slices)
    for number in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist():
        for kind in given.fields:
            scan = lru_cache(1)(partial(scanned, images[number], kind, given.matrix, given.snr, number, given.maps))
            for method in given.methods:
                key = f"{kind}, {given.matrix}, snr {given.snr:g}, test {number} of {len(images)}: {method}"
                compute = partial(lambda s, m, n: score(s(), METHODS[m], n), scan, method, number)
                if (result := kept.get(key, compute)) is not None:
                    found[kind][method].append(Score(*result))  # type: ignore[misc]
                    print(key, [f"{x:.3g}" for x in found[kind][method][-1]], file=sys.stderr, flush=True)
    parts = [f"### {kind}\n\n{table(rows)}\n" for kind, rows in found.items()]
    command = "python -m benchmarks.blind.field_maps " + shlex.join(sys.argv[1:])
    given.output.write_text(f"`{command}`, {machine()}\n\n" + "\n".join(parts))


if __name__ == "__main__":
    with torch.no_grad():
        main()
