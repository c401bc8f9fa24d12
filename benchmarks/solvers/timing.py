"""Seconds per iteration and per slice, physics and network apart, beside the same methods written the usual way.

    python -m benchmarks.solvers.timing -o FILE.md [--matrices 128 256 384] [--kinds cartesian spiral] [--steps 5]

The 384 x 384 scans have 15 coils, the others 8. Ours and theirs take turns, so that a noisy machine strikes both alike.
What was measured is kept in FILE.times.json beside FILE.md; delete it to measure again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.operators.ours import linear_model
from benchmarks.operators.problem import Problem, Size
from benchmarks.priors.denoising import Kept, machine, markdown
from benchmarks.solvers import plain
from benchmarks.solvers.masks import equispaced_lines
from benchmarks.solvers.metered import Meter, metered
from recon_core.operators.cartesian import grid_index
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.library import load_prior
from recon_core.priors.precision import bfloat16_pays
from recon_core.priors.prior import Prior
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.red_diff import red_diff
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

SNR = 30.0
ACCELERATION = 4
LEVELS = 1.0, 0.01, 15  # of decomposed diffusion, for both
ROUNDS = 3
TIMES = 1000  # of the plain RED-diff: what paper 001 takes
PLAIN = ", plain"


class Clock:
    """`go_on` that takes the time before each step, and leaves after some.

    Attributes:
        physics, network: seconds of each step after the first.
        planned: steps.
        first: seconds before the first step.
    """

    def __init__(self, meter: Meter, steps: int) -> None:
        self._meter, self._steps = meter, steps
        self._began = self._last = time.perf_counter()
        self._in_network = meter.seconds
        self.physics: list[float] = []
        self.network: list[float] = []
        self.planned, self.first = 0, 0.0

    def __call__(self, done: int, planned: int) -> bool:
        """Whether there are steps left to be timed."""
        now, in_network = time.perf_counter(), self._meter.seconds
        if done == 0:
            self.planned, self.first = planned, now - self._began
        if done > 1:  # the first step allocates
            self.network.append(in_network - self._in_network)
            self.physics.append(now - self._last - self.network[-1])
        self._last, self._in_network = now, in_network
        return done <= self._steps


@dataclass(frozen=True)
class Scene:
    """One scan for both: our problem, and the plain operator with the data in the units of the prior.

    Noise of the plain one counts as one per real channel, so that its methods have the weights of ours.
    """

    problem: LinearProblem
    operator: plain.Operator
    kspace: Tensor


def cartesian(problem: Problem) -> tuple[LinearModel, plain.Operator, Callable[[Tensor], Tensor]]:
    """Equispaced lines; data on the grid for the plain one."""
    n = problem.size.matrix
    trajectory = equispaced_lines(n, ACCELERATION).float()
    model = LinearModel(Encoding(sampling_operator(trajectory, (n, n))), problem.coil_maps)
    index = grid_index(trajectory, (n, n))
    mask = torch.zeros(n, n)
    mask[tuple(index)] = 1

    def on_grid(kspace: Tensor) -> Tensor:
        grid = torch.zeros(len(kspace), n, n, dtype=kspace.dtype)
        grid[:, index[0], index[1]] = kspace
        return grid

    return model, plain.MaskedFft(problem.coil_maps, mask), on_grid


def spiral(problem: Problem) -> tuple[LinearModel, plain.Operator, Callable[[Tensor], Tensor]]:
    """Spirals with a field map; the plain one gets the fewest segments, those that ours has."""
    from benchmarks.operators.opponents.kbnufft import KbNufftSegmented

    model = linear_model(problem)
    unused = torch.zeros(problem.size.coils, *problem.trajectory.shape[1:], dtype=torch.complex64)
    return model, KbNufftSegmented(problem, unused), lambda kspace: kspace


KINDS = {"cartesian": cartesian, "spiral": spiral}


class Scaled:
    """A plain operator in the units of the prior."""

    def __init__(self, operator: plain.Operator, unit: Tensor) -> None:
        self._operator, self._unit = operator, unit

    def forward(self, image: Tensor) -> Tensor:
        """A image."""
        return self._unit * self._operator.forward(image)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H kspace."""
        return self._unit * self._operator.adjoint(kspace)


def scene(kind: str, matrix: int, prior: Prior) -> Scene:
    """A head with noise."""
    problem = Problem(Size(matrix=matrix, coils=15 if matrix > 256 else 8))
    model, operator, arranged = KINDS[kind](problem)
    kspace = model.forward(problem.head * SNR)
    kspace = kspace + torch.randn(kspace.shape, generator=torch.Generator().manual_seed(0), dtype=kspace.dtype)
    ours = LinearProblem.of(model, kspace).scaled_for(prior.convention)
    return Scene(ours, Scaled(operator, ours.unit), arranged(kspace))


def measured(kind: str, matrix: int, prior: Prior, steps: int) -> dict[str, dict[str, float]]:
    """Medians over all steps of all rounds: `first`, `physics` and `network` seconds, and the steps planned."""
    counting, meter = metered(prior)
    counting_plain, meter_plain = metered(plain.in_single_precision(prior))
    this = scene(kind, matrix, prior)
    levels = falling_levels(prior, *LEVELS)

    def run(clock: Clock) -> Run:
        return Run(torch.Generator().manual_seed(0), go_on=clock)

    def sampled(clock: Clock) -> object:
        return decomposed_diffusion(
            this.problem, counting, run(clock), highest=LEVELS[0], lowest=LEVELS[1], steps=LEVELS[2]
        )

    programs: dict[str, Callable[[Clock], object]] = {
        "RED-diff": lambda clock: red_diff(this.problem, counting, run(clock)),
        f"RED-diff{PLAIN}": lambda clock: plain.red_diff(this.operator, this.kspace, counting_plain, clock),
        "decomposed diffusion": sampled,
        f"decomposed diffusion{PLAIN}": lambda clock: plain.decomposed_diffusion(
            this.operator, this.kspace, counting_plain, levels, clock
        ),
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in programs}
    for number in range(ROUNDS):
        for name, program in programs.items():
            print(f"{kind} {matrix}, round {number}: {name}", file=sys.stderr)
            clocks[name].append(Clock(meter_plain if name.endswith(PLAIN) else meter, steps))
            program(clocks[name][-1])
    return {name: _medians(found) for name, found in clocks.items()}


def _medians(clocks: list[Clock]) -> dict[str, float]:
    return {
        "first": median(clock.first for clock in clocks),
        "physics": median(s for clock in clocks for s in clock.physics),
        "network": median(s for clock in clocks for s in clock.network),
        "planned": clocks[0].planned,
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Milliseconds per iteration, seconds per slice, and how many times as long the plain ones take."""
    header = ["physics, ms", "network, ms", "iteration, ms", "steps", "s per slice"]
    ratios = ["ratio of physics", "of iterations", "of slices"]
    rows = {}
    for name, one in found.items():
        ours = found[name.removesuffix(PLAIN)]
        cells = [f"{1e3 * x:.1f}" for x in (one["physics"], one["network"], _iteration(one))]
        cells += [f"{one['planned']:.0f}", f"{_slice(one):.2f}"]
        if one is ours:
            cells += [""] * 3
        else:
            pairs = (
                (one["physics"], ours["physics"]),
                (_iteration(one), _iteration(ours)),
                (_slice(one), _slice(ours)),
            )
            cells += [f"{theirs / mine:.1f}" for theirs, mine in pairs]
        rows[name] = cells
    return markdown("method", header + ratios, rows)


def _precision() -> str:
    return "bfloat16" if bfloat16_pays(torch.device("cpu"), torch.float32) else "float32"


def _iteration(one: dict[str, float]) -> float:
    return one["physics"] + one["network"]


def _slice(one: dict[str, float]) -> float:
    return one["first"] + one["planned"] * _iteration(one)


def main() -> None:
    """Prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", nargs="+", type=int, default=[128, 256, 384])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--prior", default="head_unet_large")
    parser.add_argument("--steps", type=int, default=5, help="timed in each of the rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--output", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    prior = load_prior(chosen.prior)
    kept = Kept(chosen.output.with_suffix(".times.json"))
    parts = [
        f"`python -m benchmarks.solvers.timing {shlex.join(sys.argv[1:])}`: {machine()}.",
        f"""\
Medians of {ROUNDS} rounds in which all programs take turns. Plain: RED-diff by autograd with the {TIMES} steps of
paper 001, decomposed diffusion with as many steps as ours; FFT and mask, or torchkbnufft with 4 neighbours and as few
terms of off-resonance as ours (error 1e-3). Both call the same network: ours in the precision that the prior chooses
(here {_precision()}), the plain ones in float32. The seconds of a slice are what comes before the first step and all
steps; coil maps, Toeplitz kernels and the scale of the image are left out.""",
    ]
    for kind in chosen.kinds:
        for matrix in chosen.matrices:
            compute = partial(measured, kind, matrix, prior, chosen.steps)
            found = kept.get(f"{kind} {matrix} {chosen.prior} {torch.get_num_threads()} threads", compute)
            parts.append(f"### {kind}, {matrix} x {matrix}\n\n{table(found)}")
            chosen.output.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
