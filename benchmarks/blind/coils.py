"""Paper 003's comparison on held-out heads: image and coil maps found together, beside maps that are calibrated first.

    python -m benchmarks.blind.coils --test heads/test --tune heads/val -o FILE.md
        [--cases cartesian_8 ...] [--methods joint_tv ...] [--slices 20] [--matrix 128] [--snr 30] [--minutes 8]

Every score is kept in FILE.scores.json beside FILE.md, so that a run which was interrupted, or whose minutes were over,
goes on where it was. Delete it where methods have changed.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LSQUnivariateSpline
from torch import Tensor

from benchmarks.priors.denoising import cell, machine, markdown
from benchmarks.priors.images import held_out
from benchmarks.solvers.problems import UNIT, Case, Scanner, combined, mosaic, whitened_maps
from benchmarks.solvers.tables import KeptInTime
from recon_core.calibration.compression import compression_matrix
from recon_core.calibration.espirit import espirit
from recon_core.calibration.low_resolution import NotFullySampledError, calibration_kspace
from recon_core.density import pipe_menon
from recon_core.metrics import psnr, ssim
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.priors.library import load_prior
from recon_core.priors.prior import Prior
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.joint_diffusion import joint_diffusion, local_weight
from recon_core.solvers.joint_langevin import joint_langevin, map_estimate
from recon_core.solvers.joint_problem import JointEstimate, JointProblem, normalised
from recon_core.solvers.joint_total_variation import joint_total_variation
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.red_diff import red_diff
from recon_core.solvers.run import Estimate, Run
from recon_core.trajectories import cartesian_lines, linear_angles, radial_spokes

TUNING_SLICES = 2
WEIGHTS = {  # that are tried on the tuning slices
    "joint_tv": [2 ** (i / 2) for i in range(-5, 1)],
    "joint_pogmdm_map": [2 ** (i / 2) for i in range(-10, -3)],
    "joint_pogmdm_mmse": [2 ** (i / 2) for i in range(-10, -1)],
}
KNOTS = 5
MAP_STEPS = 60


def _lines(matrix: int, share: float) -> Tensor:
    """Every fourth line, and a share of all for calibration."""
    half = round(share * matrix / 2)
    numbers = sorted({*range(0, matrix, 4), *range(matrix // 2 - half, matrix // 2 + half)})
    return cartesian_lines(torch.tensor(numbers)[None] - matrix // 2, matrix, matrix // 2)


def _radial(matrix: int) -> Tensor:
    return radial_spokes(linear_angles(round(math.pi / 2 * matrix / 11)), matrix, (matrix, matrix))


def _gaussian(matrix: int) -> Tensor:
    """An eighth of all points, drawn by a Gaussian of the variance matrix^2 / 64, and a square of 8 %."""
    rng, half = np.random.default_rng(42), round(0.08 * matrix / 2)
    points = {(y, x) for y in range(-half, half) for x in range(-half, half)}
    while len(points) < matrix**2 // 8:
        y, x = (int(k) for k in np.rint(rng.normal(0, matrix / 8, 2)))
        if max(abs(y), abs(x)) < matrix // 2:
            points.add((y, x))
    return torch.tensor(sorted(points)).T[..., None].double()


def _grid(matrix: int, trajectory: Tensor) -> float:
    return matrix**2 / trajectory[0].numel()


def _spokes(matrix: int, trajectory: Tensor) -> float:
    return math.pi / 2 * matrix / trajectory.shape[1]


CASES = {
    case.name: case
    for case in (
        Case("cartesian_8", 8, 12, partial(_lines, share=0.08), _grid),
        Case("cartesian_4", 8, 12, partial(_lines, share=0.04), _grid),
        Case("radial_11", 8, 12, _radial, _spokes),
        Case("gaussian_8", 8, 12, _gaussian, _grid),
    )
}


@dataclass(frozen=True)
class CoilScan:
    """What the reconstruction gets, and what it should find.

    Attributes:
        encoding: of the trajectory.
        kspace: prewhitened, `[coil, shot, sample]`.
        espirit_maps: of the calibration region.
        truth: complex `[y, x]`.
        coil_images: of the full scan without noise, `[coil, y, x]`.
    """

    encoding: Encoding
    kspace: Tensor
    espirit_maps: Tensor
    truth: Tensor
    coil_images: Tensor


class CoilScanner(Scanner):
    """As `Scanner`, but keeps the true coil images, and calibrates by as few lines as there are."""

    def coil_scan(self, image: Tensor, seed: int) -> CoilScan:
        """The scan of a slice `[y, x]`, which always has the same noise for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        fine = mosaic(image, 2 * self.matrix)
        whitened = whitened_maps(fine, self.case.physical_coils)
        coil_images = whitened(len(fine)) * fine * (self.matrix / len(fine))
        full, directions = self._full(coil_images), whitened(self.matrix)
        gain = self._snr / UNIT.unit(combined(full, directions))
        signal = gain * self._signal(coil_images)
        kspace = signal + torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
        compression = compression_matrix(kspace, 1.0, self.case.coils)
        full, directions = (torch.einsum("vc,cyx->vyx", compression, x) for x in (gain * full, directions))
        kspace = torch.einsum("vc,cab->vab", compression, kspace)
        maps = _espirit_maps(kspace, self._trajectory, self.matrix)
        return CoilScan(self.encoding, kspace, maps, combined(full, directions), full)


def _espirit_maps(kspace: Tensor, trajectory: Tensor, matrix: int) -> Tensor:
    for lines in range(24, 3, -2):
        for width in (48, lines):
            try:
                centre = calibration_kspace(kspace, trajectory, (lines, width))
            except NotFullySampledError:
                continue
            return espirit(centre, (matrix, matrix), min(6, lines // 2), crop=0.0)
    raise NotFullySampledError("not even the central 4 lines of k-space are fully sampled")


@cache
def _prior(name: str) -> Prior:
    return load_prior(name)


def _problem(scan: CoilScan, prior: str) -> JointProblem:
    return JointProblem.of(scan.encoding, scan.kspace).scaled_for(_prior(prior).convention)


Found = tuple[Tensor, Tensor]
"""Image in physical units, and coil maps."""


def _zero_filled(scan: CoilScan, run: Run) -> Found:
    compensation = pipe_menon(scan.encoding.sampling)
    images = scan.encoding.sampling.adjoint(compensation * scan.kspace)
    return torch.linalg.vector_norm(images, dim=0), normalised(images)


def _joint_tv(scan: CoilScan, run: Run, weight: float) -> Found:
    problem = JointProblem.of(scan.encoding, scan.kspace).scaled_for(UNIT)
    found = joint_total_variation(problem, run, weight=weight)
    return found.image * problem.unit, found.coil_maps


def _calibrated(solve: Callable[..., Estimate], prior: str, scan: CoilScan, run: Run) -> Found:
    model = LinearModel(scan.encoding, scan.espirit_maps)
    problem = LinearProblem.of(model, scan.kspace).scaled_for(_prior(prior).convention)
    return solve(problem, _prior(prior), run).image * problem.unit, scan.espirit_maps


def _joint(solve: Callable[..., JointEstimate], prior: str, scan: CoilScan, run: Run, **settings: float) -> Found:
    problem = _problem(scan, prior)
    found = solve(problem, _prior(prior), run, **settings)
    return found.image * problem.unit, found.coil_maps


def _most_likely(problem: JointProblem, prior: Prior, run: Run, weight: float) -> JointEstimate:
    found = joint_diffusion(problem, prior, run, weight=weight)
    local = local_weight(weight, found.image, problem.noise_level)
    return map_estimate(problem, prior, found, run, steps=MAP_STEPS, weight=local)


METHODS: dict[str, tuple[Callable[..., Found], int]] = {  # and the samples that are drawn
    "zero_filled": (_zero_filled, 1),
    "joint_tv": (_joint_tv, 1),
    "espirit_red_diff": (partial(_calibrated, red_diff, "head_unet"), 1),
    "espirit_decomposed_diffusion": (partial(_calibrated, decomposed_diffusion, "head_unet"), 4),
    "joint_pogmdm_map": (partial(_joint, _most_likely, "head_pogmdm"), 1),
    "joint_pogmdm_mmse": (partial(_joint, joint_diffusion, "head_pogmdm"), 10),
    "joint_pogmdm_langevin": (partial(_joint, joint_langevin, "head_pogmdm"), 4),
    "joint_unet": (partial(_joint, joint_diffusion, "head_unet"), 4),
}


class Score(NamedTuple):
    """Of one slice: before and after the fit of intensities; the residual of maps, and of ESPIRiT's."""

    psnr: float
    psnr_fitted: float
    ssim_fitted: float
    residual: float
    residual_espirit: float
    seconds: float


class IntensityFit:
    """A cubic spline from intensities that were found to those of the truth (paper 003: inner knots at quantiles)."""

    def __init__(self, found: list[Tensor], truth: list[Tensor]) -> None:
        """Takes magnitudes of validation slices."""
        x, y = (_magnitudes(images) for images in (found, truth))
        order = np.argsort(x, kind="stable")
        x, y = x[order] + 1e-9 * np.arange(len(x)), y[order]
        bright = x[x > 0.05 * x[-1]]
        self._ends = float(x[0]), float(x[-1])
        self._spline = LSQUnivariateSpline(x, y, np.quantile(bright, np.linspace(0, 1, KNOTS + 2)[1:-1]))

    def __call__(self, image: Tensor) -> Tensor:
        """Beyond the intensities that were seen, the difference to the nearest stays."""
        magnitude = image.abs()
        inside = magnitude.clamp(*self._ends)
        fitted = torch.from_numpy(self._spline(inside.double().numpy())).to(magnitude)
        return (fitted + magnitude - inside).clamp_min(0)


def _magnitudes(images: list[Tensor]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = torch.stack(images).abs().flatten().double().numpy()
    return values


def null_space_residual(coil_maps: Tensor, coil_images: Tensor) -> float:
    """What maps of unit norm `[coil, y, x]` leave of the coil images, relative to these."""
    maps = normalised(coil_maps)
    left = coil_images - maps * (maps.conj() * coil_images).sum(0)
    return float(torch.linalg.vector_norm(left) / torch.linalg.vector_norm(coil_images))


def reconstructed(
    method: str, scan: CoilScan, seed: int, weight: float | None, samples: int | None = None
) -> tuple[Tensor, Tensor, float]:
    """Image, maps and seconds; as many samples as the method draws by default."""
    solve, usual = METHODS[method]
    settings = {} if weight is None else {"weight": weight}
    _ = scan.encoding.kernels
    began = time.perf_counter()
    image, maps = solve(scan, Run(torch.Generator().manual_seed(seed), samples or usual), **settings)
    return image, maps, time.perf_counter() - began


class Bench:
    """One case, on slices for tests and others for tuning."""

    def __init__(
        self, name: str, scanner: CoilScanner, test: list[Tensor], tune: list[Tensor], kept: KeptInTime
    ) -> None:
        self._name, self._scanner, self._test, self._kept = name, scanner, test, kept
        self._tuning = [lru_cache(1)(partial(scanner.coil_scan, s, 1000 + i)) for i, s in enumerate(tune)]

    def rows(self, methods: list[str]) -> dict[str, list[Score]]:
        """Scores of all slices that are kept or that there is time for, by method and weight."""
        weights = {method: self._weight(method) for method in methods if method in WEIGHTS}
        labels = {m: f"{m}, weight {w:.2g}" if (w := weights.get(m)) else m for m in methods}
        found: dict[str, list[Score]] = {labels[method]: [] for method in methods}
        fits = {method: lru_cache(1)(partial(self._fit, method, weights.get(method))) for method in methods}
        for number in torch.randperm(len(self._test), generator=torch.Generator().manual_seed(0)).tolist():
            scan = lru_cache(1)(partial(self._scanner.coil_scan, self._test[number], number))
            for method in methods:
                if method in WEIGHTS and weights[method] is None:
                    continue
                key = f"{self._name}, test {number} of {len(self._test)}: {_weighed(method, weights.get(method))}"
                compute = partial(self._score, method, scan, number, fits[method], weights.get(method))
                if (score := self._kept.get(key, compute)) is not None:
                    found[labels[method]].append(Score(*score))
        return found

    def _score(
        self,
        method: str,
        scan: Callable[[], CoilScan],
        seed: int,
        fit: Callable[[], IntensityFit],
        weight: float | None,
    ) -> Score:
        print(f"  {method}", file=sys.stderr)
        image, maps, seconds = reconstructed(method, scan(), seed, weight)
        truth, fitted = scan().truth, fit()(image)
        residuals = (null_space_residual(m, scan().coil_images) for m in (maps, scan().espirit_maps))
        return Score(psnr(image, truth), psnr(fitted, truth), ssim(fitted, truth), *residuals, seconds)

    def _fit(self, method: str, weight: float | None) -> IntensityFit:
        scans = [scan() for scan in self._tuning]
        images = [reconstructed(method, scan, 0, weight)[0] for scan in scans]
        return IntensityFit(images, [scan.truth for scan in scans])

    def _weight(self, method: str) -> float | None:
        """The best by PSNR of one sample on the tuning slices; None where there was no time to find it."""
        gains = []
        for weight in WEIGHTS[method]:
            key = f"{self._name}, tune {len(self._tuning)}: {_weighed(method, weight)}"
            gain = self._kept.get(key, partial(self._gain, method, weight))
            if gain is None:
                return None
            gains.append(gain)
        return WEIGHTS[method][gains.index(max(gains))]

    def _gain(self, method: str, weight: float) -> float:
        return mean(psnr(reconstructed(method, s(), 0, weight, 1)[0], s().truth) for s in self._tuning)


def _weighed(method: str, weight: float | None) -> str:
    """What scores are kept under: those of another weight are not taken for this one's."""
    return method if weight is None else f"{method} {weight:g}"


HEADER = ["PSNR in dB", "PSNR fitted", "SSIM fitted", "residual in %", "ESPIRiT's", "s per slice", "slices"]


def _cells(scores: list[Score]) -> list[str]:
    return [
        cell([s.psnr for s in scores], 2),
        cell([s.psnr_fitted for s in scores], 2),
        cell([s.ssim_fitted for s in scores], 3),
        cell([100 * s.residual for s in scores], 2),
        cell([100 * s.residual_espirit for s in scores], 2),
        f"{mean(s.seconds for s in scores):.1f}",
        str(len(scores)),
    ]


def introduction(snr: float, matrix: int) -> str:
    """What all tables share."""
    return f"""\
Held-out slices, {matrix} x {matrix} pixels, simulated as for `benchmarks.solvers.tables` with the signal-to-noise ratio
{snr:g}. R counts the calibration in: 8 or 4 % of the lines, a square of 8 % for the Gaussian, what the spokes have. No
joint method is given maps. Fitted: after a cubic spline of the intensities, fitted on {TUNING_SLICES} validation slices
as in paper 003. Residual: norm of what the maps cannot make of the fully sampled coil images without noise, relative to
these. The weights of TV and of the PoGMDM are tuned on the validation slices, the latter with one sample."""


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", type=Path, required=True, help="folder of held-out slices")
    parser.add_argument("--tune", type=Path, required=True, help="folder of the slices that weights are tuned on")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=128)
    parser.add_argument("--snr", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which nothing new is begun")
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    kept = KeptInTime(chosen.output.with_suffix(".scores.json"), chosen.minutes)
    test, tune = held_out(chosen.test, chosen.slices), held_out(chosen.tune, TUNING_SLICES)
    command = f"`python -m benchmarks.blind.coils {shlex.join(sys.argv[1:])}`: {machine()}."
    parts = [command, introduction(chosen.snr, chosen.matrix)]
    for name in chosen.cases:
        print(name, file=sys.stderr)
        scanner = CoilScanner(CASES[name], chosen.matrix, chosen.snr)
        label = f"{name} {chosen.matrix} snr {chosen.snr:g}"
        rows = Bench(label, scanner, test, tune, kept).rows(chosen.methods)
        cells = {method: _cells(scores) for method, scores in rows.items() if scores}
        title = f"### {name}: R = {scanner.case.acceleration(chosen.matrix):.2f}, {scanner.case.coils} coils"
        parts.append(f"{title}\n\n{markdown('method', HEADER, cells)}")
        chosen.output.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    with torch.no_grad():
        main()
