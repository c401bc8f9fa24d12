"""The table: one normal operator and one data gradient, ours and everybody else's.

    python -m benchmarks.operators [--matrix 128 256] [--error 1e-3] [--repeats 7] [--only WORD ...] [--threads N]

What is not installed is skipped and said to be. Errors are relative, against the plain sum over pixels and samples in
double precision, which is computed once and kept. Memory is what an operator holds and what one normal operation needs
besides, in a process of its own. Times are medians, and beside them the fastest: where the two are far apart, others
were at work on the machine. Ratios are medians of the normal operator over ours.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks.operators import gpu
from benchmarks.operators.measure import Measured, measured, milliseconds
from benchmarks.operators.opponents import installed_rows
from benchmarks.operators.problem import Problem, Size
from benchmarks.operators.truth import exact_truth

HEADER = "normal ms | fastest | ratio | gradient ms | error | of gradient | MiB | set-up s |"


def table(results: list[Measured]) -> str:
    """In Markdown; the first row is ours."""
    width = max(len(result.name) for result in results)
    lines = [f"| {'':{width}} | {HEADER}", f"|{'-' * (width + 2)}|" + "---:|" * 8]
    ours = milliseconds(results[0].normal)
    for r in results:
        normal = milliseconds(r.normal)
        gradient = f"{milliseconds(r.gradient):.0f}" if r.gradient else "-"
        errors = ["-" if e is None else f"{e:.1e}" for e in (r.normal_error, r.gradient_error)]
        times = [f"{normal:.0f}", f"{1e3 * min(r.normal):.0f}", f"{normal / ours:.1f}", gradient]
        cells = [*times, *errors, f"{r.mebibytes:.0f}", f"{r.setup:.1f}"]
        lines.append(f"| {r.name:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table of each matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrix", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--error", type=float, default=1e-3, help="of the time functions that all rows share")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these words, and ours")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = installed_rows()
    warnings.simplefilter("ignore")  # of the opponents' libraries
    rows = rows[:1] + [row for row in rows[1:] if any(word in row.name for word in arguments.only)]
    for matrix in arguments.matrix:
        problem = Problem(Size(matrix=matrix, error=arguments.error))
        results = measured(rows, problem, exact_truth(problem), arguments.repeats)
        size = problem.size
        print(
            f"\n{matrix} x {matrix}, {size.coils} coils, {size.shots} x {size.samples} samples, "
            f"+-{size.reach_hz:g} Hz, {len(problem.terms)} terms for {size.error:g}; "
            f"{torch.get_num_threads()} threads, medians of {arguments.repeats}\n"
        )
        print(table(results), flush=True)
    if torch.cuda.is_available():
        print(gpu.report())


if __name__ == "__main__":
    main()
