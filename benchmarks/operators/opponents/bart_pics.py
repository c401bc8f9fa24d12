"""BART: what one iteration of `pics` takes with our functions of time as its temporal basis.

`pics -B` holds the same L x L Toeplitz kernels. It cannot hold the weight of each pixel in each term, so that it solves
for L images where we solve for one: what is timed is S^H E^H E S, without the products with the field's coefficients
(which are small), and what it gives cannot be set beside the truth.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.operators.operator import Row
from benchmarks.operators.problem import Problem

if shutil.which("bart") is None:
    raise ImportError("bart is not on the path", name="bart")

FEW, MANY = 2, 7  # iterations; the time of one is the difference over five


class Pics:
    """Conjugate gradients; the kernels are computed once and read by each run."""

    def __init__(self, problem: Problem, data: Tensor) -> None:
        self._folder = tempfile.TemporaryDirectory()
        # Dimensions of BART: 0 - 2 readout and phase encodings, 3 coils, 5 times, 6 coefficients of the basis.
        trajectory = torch.cat([problem.trajectory.flip(0), torch.zeros_like(problem.trajectory[:1])])
        self._write("trajectory", _placed(trajectory, (0, 2, 5)))
        self._write("kspace", _placed(data, (3, 2, 5)))
        self._write("maps", _placed(problem.coil_maps, (3, 1, 0)))
        self._write("basis", _placed(problem.terms.weights, (6, 5)))
        self._run(1, "--psf_export")

    def seconds(self) -> float:
        """Of one iteration."""
        return (self._run(MANY, "--psf_import")[0] - self._run(FEW, "--psf_import")[0]) / (MANY - FEW)

    def mebibytes(self) -> float:
        """The largest resident memory of the whole program."""
        return self._run(1, "--psf_import")[1]

    def _run(self, iterations: int, psf: str) -> tuple[float, float]:
        """Seconds and MiB of a whole run."""
        weak = ("-w", "1", "-l2", "-r", "1e-6")
        command = ["bart", "pics", "-i", str(iterations), *weak, psf, "psf", "-t", "trajectory", "-B", "basis"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "kspace", "maps", "image"],
            cwd=self._folder.name,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"bart pics ended with status {process.returncode}")
        return time.perf_counter() - began, usage.ru_maxrss / 1024

    def _write(self, name: str, array: np.ndarray) -> None:
        path = Path(self._folder.name, name)
        path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
        array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _placed(array: Tensor, dimensions: tuple[int, ...]) -> np.ndarray:
    """The array with its axes at some of BART's 16 dimensions."""
    whole = array.numpy().reshape(*array.shape, *[1] * (16 - array.ndim))
    return np.moveaxis(whole, range(array.ndim), dimensions)


ROWS = [Row("BART pics -B, an iteration, no field", Pics)]
