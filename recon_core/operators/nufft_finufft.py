"""The transform by finufft, on processors (Barnett, Magland and af Klinteberg, SIAM J Sci Comput 41:C479, 2019)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon_core.operators.nufft_plan import radians_per_pixel

try:
    import finufft

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

TOLERANCE = {torch.complex64: 1e-6, torch.complex128: 1e-12}

# Of the grid of the FFT. As exact as 2 here and up to twice as fast: images of 2^n would need an FFT of 2^(n+1), whose
# rows all fall upon the same lines of the processor's cache.
OVERSAMPLING = 1.75

SORTED_BYTES = 8  # that finufft keeps for each sample beside its coordinates


class FinufftPlan:
    """Spreads by a kernel that it computes on the way.

    Ready in milliseconds, where a matrix took 0.6 s (31,200 samples of 256 x 256) to 24 s (80,000 of 64 x 64 x 64).
    After that one to two times as fast as the matrix, two to three times in three dimensions, and 12 (500,000 samples
    of 128 x 128 x 128) to 100 times (300,000 of 64 x 64 x 64) as fast as tables.
    """

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        points = radians_per_pixel(trajectory, shape).to(dtype.to_real())
        self._points = [axis.contiguous().numpy() for axis in points]
        self._shape = shape
        self._dtype = dtype
        self._threads = torch.get_num_threads()
        self._plans: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        coordinates = len(self._points) * self._dtype.to_real().itemsize
        return len(self._points[0]) * (coordinates + len(self._plans) * SORTED_BYTES)

    def forward(self, images: Tensor) -> Tensor:
        """See `Plan`."""
        return _transform(images, self, False)

    def adjoint(self, samples: Tensor) -> Tensor:
        """See `Plan`."""
        return _transform(samples, self, True)

    def transform(self, batch: Tensor, adjoint: bool) -> Tensor:
        """Either direction, unknown to autograd."""
        given = batch.detach().resolve_conj().resolve_neg().contiguous().numpy()
        result = np.empty((len(batch), *(self._shape if adjoint else self._points[0].shape)), given.dtype)
        # As many at once as there are threads, which would wait for each other within one small transform.
        with self._lock:
            for start in range(0, len(batch), self._threads):
                some = slice(start, start + self._threads)
                plan = self._plan(len(given[some]))
                (plan.execute_adjoint if adjoint else plan.execute)(given[some], result[some])
        return torch.from_numpy(result)

    def _plan(self, at_once: int) -> Any:
        if at_once not in self._plans:
            plan = finufft.Plan(
                2,
                self._shape,
                at_once,
                TOLERANCE[self._dtype],
                -1,
                str(self._dtype).removeprefix("torch."),
                upsampfac=OVERSAMPLING,
                nthreads=self._threads,
            )
            plan.setpts(*self._points)
            self._plans[at_once] = plan
        return self._plans[at_once]


class _Transform(torch.autograd.Function):
    """A linear map: its gradient is the other direction."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, plan: FinufftPlan, adjoint: bool) -> Tensor:
        ctx.plan, ctx.adjoint = plan, adjoint
        return plan.transform(batch, adjoint)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _transform(gradients[0], ctx.plan, not ctx.adjoint), None, None


def _transform(batch: Tensor, plan: FinufftPlan, adjoint: bool) -> Tensor:
    result: Tensor = _Transform.apply(batch, plan, adjoint)  # type: ignore[no-untyped-call]
    return result
