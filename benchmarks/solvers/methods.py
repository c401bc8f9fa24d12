"""What can stand in a row: every solver with its settings, told by a line of text."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.solvers.metered import metered
from benchmarks.solvers.problems import UNIT, Scan
from recon_core.density import pipe_menon
from recon_core.metrics import nrmse, psnr, ssim
from recon_core.priors.prior import NotFiniteError, Prior
from recon_core.solvers.cg_sense import cg_sense
from recon_core.solvers.csgm_langevin import csgm_langevin
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.preconditioned_langevin import preconditioned_langevin
from recon_core.solvers.pseudo_inverse_langevin import pseudo_inverse_langevin
from recon_core.solvers.red_diff import red_diff
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.score_langevin import score_langevin
from recon_core.solvers.total_variation import total_variation

SAMPLERS: dict[str, Callable[..., Estimate]] = {
    method.__name__: method
    for method in (
        csgm_langevin,
        red_diff,
        score_langevin,
        pseudo_inverse_langevin,
        preconditioned_langevin,
        decomposed_diffusion,
    )
}
TUNED = {  # what is tuned, and the values that are tried
    "cg_sense": ("regularisation", [10 ** (i / 4) for i in range(-8, -2)]),
    "total_variation": ("weight", [2 ** (i / 2) for i in range(-4, 3)]),
}
POINTS = ("zero_filled", *TUNED)


class Score(NamedTuple):
    """Of one slice, not a number where a method diverged; `calls` are network calls, each of all samples."""

    psnr: float
    ssim: float
    nmse: float
    seconds: float
    calls: int


@dataclass(frozen=True)
class Method:
    """A solver with settings that differ from its defaults."""

    name: str
    settings: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def of(text: str) -> Method:
        """From `name` or `name:setting=value:setting=value`.

        Raises:
            ValueError: an unknown method or setting.
        """
        name, *rest = text.split(":")
        if name not in (*POINTS, *SAMPLERS):
            raise ValueError(f"expected a method among {', '.join((*POINTS, *SAMPLERS))}, got {name}")
        settings = dict(part.split("=", 1) for part in rest)
        if unknown := set(settings) - _settings_of(name):
            raise ValueError(f"{name} has the settings {', '.join(_settings_of(name))}, got {', '.join(unknown)}")
        return Method(name, tuple((key, _number(value)) for key, value in settings.items()))

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{key}={value:g}" for key, value in self.settings)])

    def with_setting(self, name: str, value: float) -> Method:
        """The same with one more setting."""
        return Method(self.name, (*self.settings, (name, value)))


def scored(method: Method, scan: Scan, prior: Prior, samples: int, seed: int) -> Score:
    """Of one method on one scan; of the building of kernels and maps no second is counted."""
    _ = scan.model.encoding.kernels
    counting, meter = metered(prior)
    began = time.perf_counter()
    try:
        image = reconstructed(method, scan, counting, Run(torch.Generator().manual_seed(seed), samples))
    except NotFiniteError:
        image = torch.full_like(scan.truth, math.nan)
    seconds = time.perf_counter() - began
    truth = scan.truth
    if not bool(torch.isfinite(image.abs()).all()):
        return Score(math.nan, math.nan, math.nan, seconds, meter.calls)
    nmse = nrmse(image.abs(), truth.abs(), scale=False) ** 2
    return Score(psnr(image, truth), ssim(image, truth), nmse, seconds, meter.calls)


def reconstructed(method: Method, scan: Scan, prior: Prior, run: Run) -> Tensor:
    """The image in physical units, `[y, x]`."""
    settings = dict(method.settings)
    if method.name == "zero_filled":
        return scan.model.adjoint(pipe_menon(scan.model.encoding.sampling) * scan.kspace)
    if method.name == "cg_sense":
        return cg_sense(scan.model, scan.kspace, **{"iterations": 30, "tolerance": 1e-4, **settings}).image
    problem = LinearProblem.of(scan.model, scan.kspace)
    if method.name == "total_variation":
        problem = problem.scaled_for(UNIT)
        return total_variation(problem, run, **settings).image * problem.unit
    problem = problem.scaled_for(prior.convention)
    return SAMPLERS[method.name](problem, prior, run, **settings).image * problem.unit


def _settings_of(name: str) -> set[str]:
    solver = {"cg_sense": cg_sense, "total_variation": total_variation, "zero_filled": None, **SAMPLERS}[name]
    return (
        set(inspect.signature(solver).parameters) - {"problem", "prior", "run", "model", "kspace"} if solver else set()
    )


def _number(text: str) -> float:
    return float(text) if set(text) & set(".en") else int(text)
