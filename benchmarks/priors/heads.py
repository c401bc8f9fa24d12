"""Sorts the shared head images into folders to train on, to select by and to test on.

    python -m benchmarks.priors.heads ../shared/data/train heads

The average head counts a third of its slices and the single volume half, so that neither a blurred nor a single head
outweighs the others. The gradient echo head stays out: it tells how a prior does on another weighting.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recon_core.training.image_files import slices_of

# The last slices of the training set, put aside before anything was tried.
TEST_SLICES = 148


def main(source: Path, target: Path) -> None:
    """Writes `train`, `val` and `test` below `target`."""
    first = np.load(source / "head_t1gd_256_a.npz")["train"]
    second = np.load(source / "head_t1gd_256_b.npz")
    _save(target / "train/t1gd_a.npz", first)
    _save(target / "train/t1gd_b.npz", second["train"][:-TEST_SLICES])
    _save(target / "test/t1gd.npz", second["train"][-TEST_SLICES:])
    _save(target / "val/t1gd.npz", second["val"])
    volume = np.load(source / "head_t1_volume.npz")["vol"]
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        _save(target / f"train/t1_{name}.npz", np.moveaxis(volume, axis, 0)[::2])
    average = list(slices_of(source / "mni152_t1_1mm.nii.gz"))[::3]
    for shape in {image.shape for image in average}:
        stack = np.stack([image for image in average if image.shape == shape])
        _save(target / f"train/average_{shape[0]}x{shape[1]}.npz", stack)


def _save(path: Path, stack: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=stack)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
