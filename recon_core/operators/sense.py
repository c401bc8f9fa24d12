"""The imaging equation of parallel imaging."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.operators.sampling import Sampling


class SenseModel:
    """A: from an image to the samples of all coils (Pruessmann et al., Magn Reson Med 46:638, 2001)."""

    def __init__(self, sampling: Sampling, coil_maps: Tensor) -> None:
        """Takes coil maps `[coil, *sampling.shape]`.

        Raises:
            ValueError: The maps have another shape.
        """
        if coil_maps.shape[1:] != torch.Size(sampling.shape):
            expected = ["coil", *sampling.shape]
            raise ValueError(f"expected coil maps {expected} as the sampling operator, got {list(coil_maps.shape)}")
        self.sampling = sampling
        self.coil_maps = coil_maps
        self._coil_axis = -coil_maps.ndim

    def forward(self, image: Tensor) -> Tensor:
        """From `[..., *shape]` to `[..., coil, shot, sample]`."""
        return self.sampling.forward(self._expand(image))

    def adjoint(self, kspace: Tensor) -> Tensor:
        """From `[..., coil, shot, sample]` to `[..., *shape]`."""
        return self._combine(self.sampling.adjoint(kspace))

    def normal(self, image: Tensor) -> Tensor:
        """`adjoint(forward(image))` of `[..., *shape]`."""
        return self._combine(self.sampling.normal(self._expand(image)))

    def norm(self, generator: torch.Generator, iterations: int = 20) -> float:
        """The largest eigenvalue of A^H A, from below, by power iteration.

        Args:
            generator: of the random start, on the device of the maps.
            iterations: each one normal operation; 20 leave about a percent.
        """
        image = torch.randn(
            self.sampling.shape, generator=generator, dtype=self.coil_maps.dtype, device=self.coil_maps.device
        )
        norm = 0.0
        for _ in range(iterations):
            image = self.normal(image / torch.linalg.vector_norm(image))
            norm = float(torch.linalg.vector_norm(image))
            if norm == 0:
                break
        return norm

    def _expand(self, image: Tensor) -> Tensor:
        return image.unsqueeze(self._coil_axis) * self.coil_maps

    def _combine(self, images: Tensor) -> Tensor:
        return (images * self.coil_maps.conj()).sum(self._coil_axis)
