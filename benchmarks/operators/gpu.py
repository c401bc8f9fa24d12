"""How much of a GPU's memory bandwidth the steps of our normal operator reach.

A step that moves its data once at the speed of a copy would reach 1. Transforms are counted as one read and one write,
products as one read of spectra and kernels and one write of spectra; a transform of two axes may need two of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer

from benchmarks.operators.ours import linear_model
from benchmarks.operators.problem import Problem, Size

_COPIED = 2**28  # bytes: far more than any cache


def report(device: str = "cuda", matrices: tuple[int, ...] = (128, 256)) -> str:
    """One line per matrix and step."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * _COPIED / _seconds(lambda: target.copy_(source))
    lines = [f"\n{device}: a copy moves {copy / 1e9:.0f} GB/s"]
    for matrix in matrices:
        problem = Problem(Size(matrix=matrix))
        model, image = linear_model(problem, device=device), problem.image.to(device)
        kernels = model.encoding.kernels
        coils = kernels.batches(1, problem.size.coils, torch.complex64).coils
        spectra = torch.randn(len(problem.terms), 1, coils, matrix, matrix, dtype=torch.complex64, device=device)
        steps: dict[str, tuple[Callable[[], object], int]] = {
            "transform": (lambda x=spectra: torch.fft.fftn(x, dim=(-2, -1)), 2 * spectra.nbytes),
            "product": (lambda k=kernels, x=spectra: k._product(x, 0), 2 * spectra.nbytes + kernels.values[0].nbytes),
        }
        for name, (step, moved) in steps.items():
            seconds = _seconds(step)
            share = moved / seconds / copy
            lines.append(f"{matrix:4d} {name:10s} {1e3 * seconds:8.3f} ms  {share:5.0%} of the copy's bandwidth")
        lines.append(f"{matrix:4d} {'normal':10s} {1e3 * _seconds(lambda m=model, x=image: m.normal(x)):8.3f} ms")
    return "\n".join(lines)


def _seconds(step: Callable[[], object]) -> float:
    """Median; the timer waits for the device."""
    return float(Timer("step()", globals={"step": step}).blocked_autorange(min_run_time=1).median)
