"""Denoised images side by side, and their errors below."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor

from benchmarks.priors.images import Sample
from recon_core.metrics import psnr

AMPLIFIED = 5


def draw(rows: list[tuple[Sample, dict[str, Tensor]]], path: Path) -> None:
    """For each sample the clean magnitude and the others by name, and the errors of magnitudes, amplified."""
    columns = 1 + max(len(denoised) for _, denoised in rows)
    figure, axes = plt.subplots(2 * len(rows), columns, figsize=(2.4 * columns, 5.2 * len(rows)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (sample, denoised) in enumerate(rows):
        clean = sample.clean.abs()
        above, below = axes[2 * number : 2 * number + 2]
        for column, (name, image) in enumerate({"clean": sample.clean, **denoised}.items()):
            above[column].imshow(image.abs().numpy(), cmap="gray", vmin=0, vmax=1.3)
            decibels = f", {psnr(image, sample.clean):.1f} dB" if column else ""
            above[column].set_title(f"{name}{decibels}", fontsize=8)
            if column:
                limit = 1 / AMPLIFIED
                below[column].imshow((image.abs() - clean).numpy(), cmap="gray", vmin=-limit, vmax=limit)
        below[0].text(0.5, 0.5, f"errors,\n±{1 / AMPLIFIED:g}", ha="center", va="center", transform=below[0].transAxes)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
