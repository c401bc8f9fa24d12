"""How the time of our normal operator grows with samples, coils, terms, matrix and slices, and what a model predicts.

    python -m benchmarks.operators.scaling [--repeats 7] [--picture benchmarks/pictures/operators.png]

The model's three constants come from the reference, 128 x 128 with 8 coils; nothing is fitted to the other points.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.operators.cost_model import CostModel, Reference, work
from benchmarks.operators.measure import milliseconds, timed
from benchmarks.operators.ours import linear_model
from benchmarks.operators.problem import Problem, Size

REFERENCE = Size()
SAMPLES = (975, 1950, 3900, 7800, 15600)  # of a readout of the same duration
COILS = (1, 2, 4, 8, 16, 32)
REACHES_HZ = (10, 40, 80, 150, 300, 600)
MATRICES = (64, 96, 128, 192, 256, 384, 512)
SLICES = (1, 2, 4, 8, 16)


class Point:
    """One size: its operator, and what was measured."""

    def __init__(self, size: Size, slices: int) -> None:
        problem = Problem(size)
        self._model = linear_model(problem, slices)
        self._image = problem.image.expand(slices, -1, -1) if slices > 1 else problem.image
        self.terms = self._model.encoding.terms
        self.work = work(self._model, slices)
        self.seconds: list[float] = []
        self._model.normal(self._image)

    def measure(self) -> None:
        """Once more."""
        self.seconds.append(timed(lambda: self._model.normal(self._image))[0])

    @property
    def measured(self) -> float:
        """Median, in milliseconds."""
        return milliseconds(self.seconds)


@dataclass
class Panel:
    """What is varied, and its points by the value on the x axis."""

    label: str
    points: dict[int, Point] = field(default_factory=dict)


def panels() -> list[Panel]:
    """All points, set up."""

    def at(slices: int = 1, **changes: float) -> Point:
        return Point(replace(REFERENCE, **changes), slices)

    by_reach = [at(reach_hz=float(reach)) for reach in REACHES_HZ]
    return [
        Panel("samples of each of 8 shots", {n: at(samples=n) for n in SAMPLES}),
        Panel("coils", {n: at(coils=n) for n in COILS}),
        Panel("terms", {point.terms: point for point in by_reach}),
        Panel("matrix (one side)", {n: at(matrix=n) for n in MATRICES}),
        Panel("slices", {n: at(slices=n) for n in SLICES}),
    ]


def picture(all_panels: list[Panel], model: CostModel) -> Figure:
    """Points measured, lines predicted."""
    figure = Figure(figsize=(13, 3.1), layout="constrained")
    axes = figure.subplots(1, len(all_panels), sharey=True)
    for axis, panel in zip(axes, all_panels, strict=True):
        values = list(panel.points)
        predicted = [1e3 * model.seconds(point.work) for point in panel.points.values()]
        measured = [point.measured for point in panel.points.values()]
        axis.loglog(values, predicted, "-", color="tab:gray", label="predicted")
        axis.loglog(values, measured, "o", color="tab:blue", label="measured")
        axis.set_xlabel(panel.label)
        axis.set_xticks(values, [str(v) for v in values], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("one normal operator, ms")
    axes[0].legend()
    return figure


def main() -> None:
    """Prints the numbers and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--picture", type=Path, default=Path("benchmarks/pictures/operators.png"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = Problem(REFERENCE)
    reference, all_panels = Reference(linear_model(problem), problem.image), panels()
    for _ in range(arguments.repeats):
        for panel in all_panels:
            reference.measure()
            for point in panel.points.values():
                point.measure()
    model = reference.model()
    print(
        f"reference: {1e-9 / model.transform:.1f} Gflop/s in transforms, {1e-9 / model.product:.1f} Gflop/s in "
        f"products, {model.byte * 1e12:.0f} ps a byte in the other passes; {torch.get_num_threads()} threads"
    )
    for panel in all_panels:
        print(f"\n{panel.label}")
        for value, point in panel.points.items():
            predicted = 1e3 * model.seconds(point.work)
            print(f"{value:8d}  {point.measured:8.1f} ms measured  {predicted:8.1f} ms predicted")
    picture(all_panels, model).savefig(arguments.picture, dpi=120)


if __name__ == "__main__":
    main()
