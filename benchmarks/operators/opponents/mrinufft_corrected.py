"""mri-nufft: its off-resonance operator around its finufft backend."""

from __future__ import annotations

from functools import partial

import mrinufft
import torch
from mrinufft.operators.off_resonance import MRIFourierCorrected
from torch import Tensor

from benchmarks.operators.operator import ForwardAdjoint, Row
from benchmarks.operators.problem import Problem

BINS = 1024  # its default
EPS = 3e-4, 1e-6  # below the error of the terms


class Corrected(ForwardAdjoint):
    """All coils as one batch of transforms; terms one after another, as the operator has it.

    With an `interpolator` of its own, else with our low-rank terms.
    """

    def __init__(self, problem: Problem, data: Tensor, interpolator: str | None) -> None:
        super().__init__(data)
        coils, shape = problem.size.coils, tuple(problem.field_hz.shape)
        # It wants [shot, sample, axis] in -0.5 .. 0.5.
        samples = (problem.trajectory / torch.tensor(shape)[:, None, None]).movedim(0, -1)
        settings = {"eps": problem.size.either(*EPS), "n_trans": coils, "nthreads": torch.get_num_threads()}
        transform = mrinufft.get_operator("finufft")(
            samples.float().numpy(),
            shape,
            n_coils=coils,
            smaps=2 * problem.coil_maps.numpy(),  # its transforms are smaller than orthonormal ones by 2^(D/2)
            **settings,
        )
        terms = problem.terms

        def ours(**_: object) -> tuple[object, ...]:
            # A function, because a pair of arrays, which is documented too, is refused (1.5.1).
            return terms.weights.T.contiguous().numpy(), terms.coefficients.numpy(), None

        own = {"name": interpolator, "L": len(terms), "n_bins": BINS}
        self._operator = MRIFourierCorrected(
            transform,
            -problem.field_hz.numpy(),  # its signal is exp(+2 pi i psi t)
            problem.times.float().numpy(),
            mask=torch.ones_like(problem.field_hz, dtype=torch.bool).numpy(),
            interpolator=own if interpolator else ours,
        )

    def forward(self, image: Tensor) -> Tensor:
        """To `[coil, shot, sample]`."""
        return torch.from_numpy(self._operator.op(image.numpy())).view(self._data.shape)

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[coil, shot, sample]`."""
        images = self._operator.adj_op(kspace.flatten(1).numpy()[None])
        return torch.from_numpy(images).squeeze()


ROWS = [
    Row("mri-nufft finufft, low rank", partial(Corrected, interpolator=None)),
    Row("mri-nufft finufft, its svd", partial(Corrected, interpolator="svd")),
    Row("mri-nufft finufft, its mti", partial(Corrected, interpolator="mti")),
]
