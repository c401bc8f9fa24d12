"""A measured brain with a part of its data: how far from the fully sampled image, and does the deviation tell where?

    python -m benchmarks.solvers.real_brain --data ../shared/data/cases/brain_16ch -o FILE.md [--picture FILE.png]
        [--methods CG-SENSE TV "decomposed diffusion"] [--samples 8] [--weight 0.7] [--regularisation 0.03]

Cartesian lines are left out; spirals are interpolated from the full grid. Maps come from what is left, by ESPIRiT.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ismrmrd
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks.priors.denoising import machine, markdown
from benchmarks.solvers.masks import equispaced_lines
from benchmarks.solvers.problems import UNIT, estimated_maps
from pipelines.simulated_readouts import spiral
from recon_core.calibration.noise import whitening_matrix
from recon_core.metrics import nrmse, psnr, ssim
from recon_core.operators.cartesian import grid_index
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.library import load_prior
from recon_core.priors.prior import Prior
from recon_core.solvers.cg_sense import cg_sense
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.preconditioned_langevin import preconditioned_langevin
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.total_variation import total_variation

MATRIX, FOV_M = 128, 0.256
NINETY = 1.645  # standard deviations on either side
# Samples a cycle apart: noise that is interpolated between the points of the grid would not be white for closer ones.
SPIRAL = {"shots": 18, "acceleration": 9, "readout_ms": 15.6, "dwell_s": 12e-6}
ZOOM = slice(36, 84), slice(40, 88)
AMPLIFIED = 5


@dataclass(frozen=True)
class Brain:
    """All that was measured, `[y, x]`.

    Attributes:
        grid: prewhitened k-space of the coils on the full grid, `[coil, y, x]`.
        whole: the fully sampled image, combined with maps from its own centre.
        mask: where the head is.
    """

    grid: Tensor
    whole: Tensor
    mask: Tensor

    @staticmethod
    def read(folder: Path) -> Brain:
        """From the files of `brain_16ch`, whose arrays have x first."""
        with np.load(folder / "brain_invivo_local16ch_maps.npz") as file:
            covariance, mask = (torch.from_numpy(file[name]) for name in ("noise_cov", "mask"))
        dataset = ismrmrd.Dataset(str(folder / "brain_invivo_local16ch.h5"), "dataset", create_if_needed=False)
        lines = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
        dataset.close()
        kspace = torch.einsum(
            "ij,jab->iab", whitening_matrix(covariance), torch.from_numpy(np.stack([line.data for line in lines], 1))
        )
        trajectory = torch.from_numpy(np.stack([line.traj for line in lines])).permute(2, 0, 1)
        index = grid_index(trajectory.flip(0), (MATRIX, MATRIX))
        grid = torch.zeros(len(kspace), MATRIX, MATRIX, dtype=kspace.dtype)
        grid[:, index[0], index[1]] = kspace
        every = equispaced_lines(MATRIX, 1)
        return Brain(grid, _model(every, grid).adjoint(grid), mask.T)

    def on(self, trajectory: Tensor) -> Tensor:
        """Samples `[coil, shot, sample]`: the measured ones on the grid, band-limited interpolation between them."""
        every = sampling_operator(equispaced_lines(MATRIX, 1).float(), (MATRIX, MATRIX))
        shape = (MATRIX, MATRIX)
        sampling = sampling_operator(trajectory.float(), shape)
        return sampling.forward(every.adjoint(self.grid))


def _model(trajectory: Tensor, kspace: Tensor) -> LinearModel:
    maps = estimated_maps(kspace, trajectory, MATRIX)
    return LinearModel(Encoding(sampling_operator(trajectory.float(), (MATRIX, MATRIX))), maps)


def _spiral() -> Tensor:
    return spiral((MATRIX, MATRIX), (FOV_M, FOV_M), **SPIRAL).trajectory


SCANS = {
    "Cartesian R = 3": partial(equispaced_lines, MATRIX, 3),
    "Cartesian R = 4": partial(equispaced_lines, MATRIX, 4),
    "spiral R = 5": _spiral,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods share, and what belongs to one of them."""

    prior: Prior
    samples: int
    weight: float
    regularisation: float


def _cg_sense(problem: LinearProblem, kspace: Tensor, run: Run, settings: Settings) -> Estimate:
    image = cg_sense(problem.model, kspace, settings.regularisation, 30, 1e-4).image
    return Estimate(image / problem.unit, None, 30, 30)


METHODS: dict[str, Callable[[LinearProblem, Tensor, Run, Settings], Estimate]] = {
    "CG-SENSE": _cg_sense,
    "TV": lambda problem, _, run, settings: total_variation(problem, run, weight=settings.weight),
    "decomposed diffusion": lambda problem, _, run, settings: decomposed_diffusion(problem, settings.prior, run),
    "preconditioned Langevin": lambda problem, _, run, settings: preconditioned_langevin(problem, settings.prior, run),
}


def reconstructions(
    brain: Brain, trajectory: Tensor, methods: list[str], settings: Settings
) -> dict[str, tuple[Estimate, float]]:
    """Estimates in physical units, and seconds, of every method."""
    kspace = brain.on(trajectory)
    problem = LinearProblem.of(_model(trajectory, kspace), kspace).scaled_for(UNIT)
    _ = problem.model.encoding.kernels
    found = {}
    for name in methods:
        print(f"  {name}", file=sys.stderr)
        run = Run(torch.Generator().manual_seed(0), settings.samples)
        began = time.perf_counter()
        estimate = METHODS[name](problem, kspace, run, settings)
        seconds = time.perf_counter() - began
        deviation = None if estimate.deviation is None else estimate.deviation * problem.unit
        found[name] = Estimate(estimate.image * problem.unit, deviation, estimate.steps, estimate.planned), seconds
    return found


def cells(estimate: Estimate, seconds: float, brain: Brain, samples: int) -> list[str]:
    """PSNR, SSIM, NMSE, seconds, and how the predicted deviation goes with the error of the magnitude in the head."""
    image, truth = estimate.image, brain.whole
    nmse = nrmse(image.abs(), truth.abs(), scale=False) ** 2
    figures = [f"{psnr(image, truth):.2f}", f"{ssim(image, truth):.3f}", f"{100 * nmse:.2f}", f"{seconds:.1f}"]
    if estimate.deviation is None:
        return [*figures, "-", "-", "-", "-"]
    error = (image.abs() - truth.abs()).abs()[brain.mask]
    # Of one of the two parts of a complex image, and of the mean of few samples.
    predicted = estimate.deviation[brain.mask] * math.sqrt((1 + 1 / samples) / 2)
    measured = (predicted.square() + 0.5).sqrt()  # the fully sampled image has noise as well
    ranks = (x.argsort().argsort().double() for x in (error, predicted))
    figures += [f"{float(torch.stack([error, predicted]).corrcoef()[0, 1]):.2f}"]
    figures += [f"{float(torch.stack(list(ranks)).corrcoef()[0, 1]):.2f}"]
    return figures + [
        f"{100 * float((error <= NINETY * spread).double().mean()):.0f} %" for spread in (predicted, measured)
    ]


def draw(brain: Brain, found: dict[str, dict[str, tuple[Estimate, float]]], path: Path) -> None:
    """For each scan: images, a zoom, errors of the zoom, and the deviation that the first method predicts."""
    names = list(next(iter(found.values())))
    scale = float(UNIT.unit(brain.whole))
    figure, axes = plt.subplots(3 * len(found), len(names) + 2, figsize=(2.4 * (len(names) + 2), 7.4 * len(found)))
    for axis in axes.flat:
        axis.axis("off")
    for number, (scan, estimates) in enumerate(found.items()):
        above, zoomed, errors = axes[3 * number : 3 * number + 3]
        images = {f"all data ({scan} follows)": brain.whole, **{name: e.image for name, (e, _) in estimates.items()}}
        for column, (name, image) in enumerate(images.items()):
            above[column].set_title(name, fontsize=8)
            above[column].imshow(image.abs().numpy() / scale, cmap="gray", vmin=0, vmax=1.2)
            zoomed[column].imshow(image.abs()[ZOOM].numpy() / scale, cmap="gray", vmin=0, vmax=1.2)
            if column:
                error = (image.abs() - brain.whole.abs())[ZOOM].numpy() / scale
                errors[column].imshow(error, cmap="gray", vmin=-1 / AMPLIFIED, vmax=1 / AMPLIFIED)
        deviation = next((e.deviation for e, _ in estimates.values() if e.deviation is not None), None)
        if deviation is not None:
            above[-1].set_title("predicted deviation", fontsize=8)
            for axis, part in ((above[-1], deviation), (zoomed[-1], deviation[ZOOM])):
                axis.imshow(part.numpy() / scale, cmap="gray", vmin=0, vmax=1 / AMPLIFIED)
        errors[0].text(0.5, 0.5, f"errors,\n±{1 / AMPLIFIED:g}", ha="center", transform=errors[0].transAxes)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Prints and writes the tables, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder brain_16ch")
    parser.add_argument("--prior", default="head_unet_large")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--weight", type=float, default=0.7, help="of total variation")
    parser.add_argument("--regularisation", type=float, default=0.03, help="of CG-SENSE")
    parser.add_argument("--scans", nargs="+", default=list(SCANS), choices=SCANS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    brain = Brain.read(chosen.data)
    settings = Settings(
        prior=load_prior(chosen.prior),
        samples=chosen.samples,
        weight=chosen.weight,
        regularisation=chosen.regularisation,
    )
    noise = float(UNIT.unit(brain.whole))
    parts = [
        f"`python -m benchmarks.solvers.real_brain {shlex.join(sys.argv[1:])}`: {machine()}.",
        f"""\
Against the fully sampled image of the same data, whose 99th percentile is {noise:.0f} times the standard deviation of
its own noise. Deviation: correlation with the error of the magnitude inside the head, of the values and of their ranks;
and the share of pixels in the interval that should hold 90 % of them, without and with the noise of the fully sampled
image. Means of {chosen.samples} samples.""",
    ]
    header = ["PSNR in dB", "SSIM", "NMSE in %", "s", "correlation", "of ranks", "90 % interval", "with noise"]
    found = {}
    for name in chosen.scans:
        print(name, file=sys.stderr)
        trajectory = SCANS[name]()
        found[name] = reconstructions(brain, trajectory, chosen.methods, settings)
        rows = {method: cells(*one, brain, chosen.samples) for method, one in found[name].items()}
        samples = trajectory[0].numel()
        title = f"{name}, {trajectory.shape[1]} shots, {samples} of {MATRIX**2} samples"
        parts.append(f"### {title}\n\n{markdown('method', header, rows)}")
        chosen.output.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))
    if chosen.picture:
        draw(brain, found, chosen.picture)


if __name__ == "__main__":
    with torch.no_grad():
        main()
