"""The papers' tables on held-out heads, with an honest forward model (see `benchmarks.solvers.problems`).

    python -m benchmarks.solvers.tables --test heads/test --tune heads/val -o FILE.md
        [--cases cartesian_1d_r4 ...] [--methods red_diff csgm_langevin:stride=10 ...] [--priors head_unet ...]
        [--samples 1 4] [--slices 20] [--matrix 128] [--snr 30] [--minutes 8]

The heads come from `python -m benchmarks.priors.heads`. Every score is kept in FILE.scores.json beside FILE.md, so
that a run which was interrupted, or whose minutes were over, goes on where it was; the tables are of what is there.
Delete it where methods have changed. Two runs at the same time need two files.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.priors.denoising import Kept, cell, machine, markdown
from benchmarks.priors.images import held_out
from benchmarks.solvers.methods import POINTS, SAMPLERS, TUNED, Method, Score, scored
from benchmarks.solvers.problems import CASES, Scan, Scanner
from recon_core.priors.library import load_prior
from recon_core.priors.prior import Prior

TUNING_SLICES = 3


class KeptInTime(Kept):
    """Kept results, to which none are added once the time is over: it gives None for those that are missing."""

    def __init__(self, path: Path | None, minutes: float) -> None:
        super().__init__(path)
        self._end = time.monotonic() + 60 * minutes

    def get(self, key: str, compute: Callable[[], object]) -> object:
        """What the key stands for."""
        if key not in self._results and time.monotonic() > self._end:
            return None
        return super().get(key, compute)


@dataclass(frozen=True)
class Row:
    """A method with the prior and the number of samples that it gets; point estimates have none of these."""

    method: Method
    prior: Prior | None = None
    samples: int = 1

    @property
    def key(self) -> str:
        """What it is kept under."""
        return f"{self.method} {self.prior.name} x{self.samples}" if self.prior else str(self.method)


@dataclass(frozen=True)
class Bench:
    """One case at one matrix, on slices for tests and others for tuning."""

    scanner: Scanner
    test: list[Tensor]
    tune: list[Tensor]
    name: str

    def scores(self, rows: list[Row], kept: KeptInTime, any_prior: Prior) -> dict[str, list[Score]]:
        """Of every row, of all slices that are kept or that there is time for."""
        found: dict[str, list[Score]] = {row.key: [] for row in rows}
        tuned = {row.key: self.tuned(row.method, kept, any_prior) for row in rows}
        # In random order, so that the first slices are a fair part of all.
        for number in torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0)).tolist():
            scan = _once(partial(self.scanner.scan, self.test[number], seed=number))
            for row in rows:
                if (method := tuned[row.key]) is None:
                    continue
                key = f"{self.name}, test {number} of {len(self.test)}: {method} | {row.key}"
                score = kept.get(key, partial(_scored, method, scan, row.prior or any_prior, row.samples, number))
                if score is not None:
                    found[row.key].append(Score(*score))
        return found

    def tuned(self, method: Method, kept: KeptInTime, any_prior: Prior) -> Method | None:
        """With the setting that is best for the tuning slices by PSNR, or None where there was no time to find it."""
        if method.name not in TUNED or TUNED[method.name][0] in dict(method.settings):
            return method
        setting, values = TUNED[method.name]
        candidates = [method.with_setting(setting, value) for value in values]
        gains: list[list[float]] = [[] for _ in candidates]
        for number, image in enumerate(self.tune):
            scan = _once(partial(self.scanner.scan, image, seed=1000 + number))
            for candidate, of_candidate in zip(candidates, gains, strict=True):
                key = f"{self.name}, tune {number} of {len(self.tune)}: {candidate}"
                score = kept.get(key, partial(_scored, candidate, scan, any_prior, 1, 0))
                if score is None:
                    return None
                of_candidate.append(Score(*score).psnr)
        return candidates[max(range(len(candidates)), key=lambda i: mean(gains[i]))]

    def table(self, rows: list[Row], kept: KeptInTime, any_prior: Prior) -> str:
        """Markdown with its heading; rows without any score are left out."""
        scores = self.scores(rows, kept, any_prior)
        tuned = {row.key: self.tuned(row.method, kept, any_prior) for row in rows}
        header = ["samples", "PSNR in dB", "SSIM", "NMSE in %", "s per slice", "network calls", "slices"]
        cells = {
            _label(row, tuned[row.key]): _cells(row, scores[row.key])
            for row in sorted(rows, key=lambda row: row.samples if row.prior else 0)
            if scores[row.key]
        }
        case = self.scanner.case
        title = f"{case.name}: R = {case.acceleration(self.scanner.matrix):.2f}, {case.coils} coils"
        return f"### {title}\n\n{markdown('method', header, cells)}"


def _scored(method: Method, scan: Callable[[], Scan], prior: Prior, samples: int, seed: int) -> Score:
    print(f"  {method} x{samples}", file=sys.stderr)
    return scored(method, scan(), prior, samples, seed)


def _once(make: Callable[[], Scan]) -> Callable[[], Scan]:
    """Makes the scan when it is first asked for, which it never is where all of its scores are kept."""
    return lru_cache(maxsize=1)(make)


def _label(row: Row, method: Method | None) -> str:
    label = str(method or row.method)
    if row.prior is None:
        return label
    return f"{label}, {row.prior.name}" + (f", mean of {row.samples}" if row.samples > 1 else ", one sample")


def _cells(row: Row, scores: list[Score]) -> list[str]:
    return [
        str(row.samples) if row.prior else "-",
        cell([s.psnr for s in scores], 2),
        cell([s.ssim for s in scores], 3),
        cell([100 * s.nmse for s in scores], 2),
        f"{mean(s.seconds for s in scores):.2f}",
        f"{mean(s.calls for s in scores):.0f}",
        str(len(scores)),
    ]


def rows_of(methods: list[str], priors: list[Prior], samples: list[int]) -> list[Row]:
    """Every method with every prior and number of samples that it can have.

    Raises:
        ValueError: an unknown method or setting.
    """
    rows = []
    for method in map(Method.of, methods):
        if method.name in POINTS:
            rows.append(Row(method))
        else:
            rows += [Row(method, prior, count) for prior in priors for count in samples]
    return rows


def introduction(snr: float, matrix: int, slices: int) -> str:
    """What all tables share."""
    return f"""\
{slices} held-out slices, spread evenly through the test set, with a random smooth phase; {matrix} x {matrix} pixels.
The object is the mosaic of the slice's own 256 x 256 pixels on a finer grid, seen by more physical coils than the
reconstruction gets; k-space is the exact sum over that grid, its noise correlated between coils and made white. Coils
are compressed, and maps come from the calibration region of the undersampled data by ESPIRiT. The signal-to-noise
ratio of the fully sampled scan (99th percentile of the magnitude over the standard deviation per complex pixel) is
{snr:g}. R counts the calibration in.

The truth is the object through the same {matrix} x {matrix} points of k-space: the fully sampled coil images without
noise, combined with the true whitened maps, so that it has the shading that maps of unit norm give. PSNR (peak of the
truth), SSIM and NMSE of magnitudes over the whole field of view: mean and standard deviation over slices. Means of
samples and single samples are apart. CG-SENSE and TV have the weight that gives the best PSNR on {TUNING_SLICES}
validation slices of the same case. Seconds are those of the solver, without coil maps and Toeplitz kernels."""


def main() -> None:
    """Prints or writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=Path, required=True, help="folder of held-out slices")
    parser.add_argument("--tune", type=Path, required=True, help="folder of the slices that weights are tuned on")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=[*POINTS, *SAMPLERS], help="name[:setting=value[:...]]")
    parser.add_argument("--priors", nargs="+", default=["head_unet_large"], help="names or files")
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=256)
    parser.add_argument("--snr", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which nothing new is begun")
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    priors = [load_prior(name) for name in chosen.priors]
    rows = rows_of(chosen.methods, priors, chosen.samples)
    kept = KeptInTime(chosen.output.with_suffix(".scores.json"), chosen.minutes)
    test, tune = held_out(chosen.test, chosen.slices), held_out(chosen.tune, TUNING_SLICES)
    parts = [
        f"`python -m benchmarks.solvers.tables {shlex.join(sys.argv[1:])}`: {machine()}.",
        introduction(chosen.snr, chosen.matrix, chosen.slices),
    ]
    for name in chosen.cases:
        print(name, file=sys.stderr)
        scanner = Scanner(CASES[name], chosen.matrix, chosen.snr)
        bench = Bench(scanner, test, tune, f"{name} {chosen.matrix} snr {chosen.snr:g}")
        parts.append(bench.table(rows, kept, priors[0]))
        chosen.output.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    with torch.no_grad():
        main()
