"""What a solver may draw and spend, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Run:
    """One call of a solver.

    Args:
        generator: of every random draw, on the device of the data.
        samples: how many images to draw; the estimate is their mean. Methods that draw none ignore it.
        go_on: asked before every step with the steps done and the steps planned; where it says no, the solver
            returns the best image so far. It may raise, to leave at once.
    """

    generator: Generator
    samples: int = 1
    go_on: Callable[[int, int], bool] = lambda done, planned: True


@dataclass(frozen=True)
class Estimate:
    """What a solver found, on the scale of its problem.

    Attributes:
        image: complex `[slice..., y, x]`, the mean of all samples.
        deviation: standard deviation of the complex image among the samples, real `[slice..., y, x]`; None where fewer
            than two were drawn.
        steps: done.
        planned: steps; more than were done where time was up.
    """

    image: Tensor
    deviation: Tensor | None
    steps: int
    planned: int

    @staticmethod
    def of(samples: Tensor, steps: int, planned: int) -> Estimate:
        """Mean and standard deviation of samples `[sample, slice..., y, x]`."""
        deviation = None
        if len(samples) > 1:
            deviation = (samples - samples.mean(0)).abs().square().sum(0).div(len(samples) - 1).sqrt()
        return Estimate(samples.mean(0), deviation, steps, planned)


class Budget:
    """`Run.go_on` that says no once a time is over; it always allows the first step.

    Args:
        seconds: from now on; infinite by default.
    """

    def __init__(self, seconds: float = float("inf")) -> None:
        self._end = time.monotonic() + seconds

    def __call__(self, done: int, planned: int) -> bool:
        """Whether there is time for another step."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # else it would measure how fast kernels are queued
        return done == 0 or time.monotonic() < self._end
