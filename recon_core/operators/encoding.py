"""What a trajectory and its readout times make of images: the part of the imaging equation that knows no scan.

Everything costly lies here and depends on the trajectory, the times and a range of frequencies alone, so that it is
built once and serves every slice, coil and field map.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from recon_core.operators.off_resonance import TimeFunctions
from recon_core.operators.sampling import Sampling
from recon_core.operators.toeplitz import ToeplitzKernels


class Encoding:
    """E: from one image per function of time to samples, `E u = sum_l w_l F u_l`.

    Without functions of time there is one term, the image itself.
    """

    def __init__(self, sampling: Sampling, functions: TimeFunctions | None = None) -> None:
        """Takes F, and functions of the times of its samples.

        Raises:
            ValueError: the functions belong to another number of shots or samples.
        """
        samples = sampling.trajectory.shape[1:]
        if functions is not None and functions.weights.shape[1:] != samples:
            raise ValueError(
                f"the trajectory has {list(samples)} shots and samples, the functions of time "
                f"{list(functions.weights.shape[1:])}"
            )
        self.sampling = sampling
        self.functions = functions
        self._kernels: ToeplitzKernels | None = None
        self._lock = threading.Lock()

    @property
    def terms(self) -> int:
        """How many functions of time there are."""
        return 1 if self.functions is None else len(self.functions)

    @property
    def nbytes(self) -> int:
        """Memory held, what has not been built yet left out."""
        parts = (self.sampling, self.functions, self._kernels)
        return sum(part.nbytes for part in parts if part is not None)

    def forward(self, terms: Tensor) -> Tensor:
        """From `[..., term, coil, *shape]` to `[..., coil, shot, sample]`."""
        images = terms.movedim(-2 - len(self.sampling.shape), 0)
        if self.functions is None:
            return self.sampling.forward(images[0])
        weights = self.functions.weights.to(terms.dtype)
        kspace = weights[0] * self.sampling.forward(images[0])
        for w, image in zip(weights[1:], images[1:], strict=True):
            kspace = kspace + w * self.sampling.forward(image)
        return kspace

    def adjoint(self, kspace: Tensor, term: int) -> Tensor:
        """One term of the adjoint: from `[..., coil, shot, sample]` to `[..., coil, *shape]`."""
        if self.functions is None:
            return self.sampling.adjoint(kspace)
        return self.sampling.adjoint(self.functions.weights[term].conj().to(kspace.dtype) * kspace)

    @property
    def kernels(self) -> ToeplitzKernels:
        """Of E^H E; built when they are first asked for, while other threads that ask wait.

        Raises:
            MemoryError: they do not fit.
        """
        with self._lock:
            if self._kernels is None:
                self._kernels = self._build()
            return self._kernels

    def _build(self) -> ToeplitzKernels:
        if self.functions is None:
            ones = torch.ones_like(self.sampling.trajectory[:1])
            return ToeplitzKernels(self.sampling.transfer_functions(ones))
        values = self.sampling.transfer_functions(self.functions.products)
        return ToeplitzKernels(values, self.functions.nodes)
