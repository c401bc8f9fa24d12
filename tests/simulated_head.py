"""What came back of a simulated scan, and what should have."""

from __future__ import annotations

from contextlib import closing

import h5py
import ismrmrd
import torch


def series(path, index: int) -> list[ismrmrd.Image]:
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        group = f"image_{index}"
        return [dataset.read_image(group, i) for i in range(dataset.number_of_images(group))]


def whitened_truth(raw) -> tuple[torch.Tensor, torch.Tensor]:
    """The magnitude that maps of unit norm give after prewhitening: brighter where the coils receive less noise."""
    with h5py.File(raw) as file:
        image, maps, mask, covariance = (
            torch.from_numpy(file[f"truth/{name}"][()]) for name in ("image", "coil_maps", "mask", "noise_covariance")
        )
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance.to(maps.dtype)))
    sensitivity = torch.einsum("vc,scyx->svyx", whitening, maps).norm(dim=1)
    return (image.abs() * sensitivity).double(), mask
