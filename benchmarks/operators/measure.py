"""Time and memory of operators."""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.operators.operator import Operator, Row
from benchmarks.operators.problem import Problem, Size
from benchmarks.operators.truth import Truth


@dataclass
class Measured:
    """One row: seconds of each repetition, relative errors, MiB.

    Errors and gradients are missing for a program whose images cannot be had.
    """

    name: str
    setup: float
    normal: list[float] = field(default_factory=list)
    gradient: list[float] = field(default_factory=list)
    normal_error: float | None = None
    gradient_error: float | None = None
    mebibytes: float = 0.0


def measured(rows: list[Row], problem: Problem, truth: Truth, repeats: int) -> list[Measured]:
    """Sets all up, then times them in turn so that a noisy machine strikes all alike; the first call is not counted."""
    results, operators = [], []
    for row in rows:
        print(f"{problem.size.matrix}: {row.name}", file=sys.stderr)
        setup, operator = timed(lambda row=row: row.build(problem, truth.data))
        results.append(Measured(row.name, setup))
        operators.append(operator)
        if not hasattr(operator, "seconds"):
            results[-1].normal_error = relative_error(operator.normal(problem.image), truth.normal)
            results[-1].gradient_error = relative_error(operator.gradient(problem.image), truth.gradient)
    for _ in range(repeats):
        for result, operator in zip(results, operators, strict=True):
            _time_once(result, operator, problem.image)
    for result in results:
        result.mebibytes = memory_elsewhere(result.name, problem.size)
    return results


def _time_once(result: Measured, operator: Operator, image: Tensor) -> None:
    if hasattr(operator, "seconds"):
        result.normal.append(operator.seconds())
        return
    result.normal.append(timed(lambda: operator.normal(image))[0])
    result.gradient.append(timed(lambda: operator.gradient(image))[0])


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def relative_error(x: Tensor, truth: Tensor) -> float:
    """In the 2-norm."""
    return float(torch.linalg.vector_norm(x - truth) / torch.linalg.vector_norm(truth))


def milliseconds(seconds: list[float]) -> float:
    """Median."""
    return 1e3 * statistics.median(seconds)


def memory_elsewhere(name: str, size: Size) -> float:
    """MiB of a row, in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, name, *map(str, (size.matrix, size.error, torch.get_num_threads()))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def memory_here(row: Row, problem: Problem, data: Tensor) -> float:
    """MiB that an operator holds, and needs besides for one normal operation.

    The largest resident memory during the operation, less that before the operator was set up. What only the set-up
    needed is not in it.
    """
    _give_back_freed_pages()
    before = _resident("VmRSS")
    operator = row.build(problem, data)
    if hasattr(operator, "mebibytes"):
        return float(operator.mebibytes())
    _give_back_freed_pages()
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
    operator.normal(problem.image)
    return _resident("VmHWM") - before


def _give_back_freed_pages() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def _resident(which: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"this system does not tell {which}")


def main() -> None:
    """Prints the MiB of the row and matrix that the command line names, for an error of the time functions."""
    from benchmarks.operators.opponents import installed_rows

    name, matrix, error, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    row = next(row for row in installed_rows() if row.name == name)
    warnings.simplefilter("ignore")  # of the opponents' libraries
    problem = Problem(Size(matrix=int(matrix), error=float(error)))
    data = torch.randn(problem.size.coils, *problem.trajectory.shape[1:], dtype=torch.complex64)
    _ = problem.terms
    print(json.dumps(memory_here(row, problem, data)))


if __name__ == "__main__":
    main()
