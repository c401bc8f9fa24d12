"""Pictures of a training: how the loss fell, and what the prior makes of noisy images."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from recon_core.metrics import psnr
from recon_core.priors.prior import Prior
from recon_core.training.corpus import Corpus
from recon_core.training.figures import held_out, with_noise
from recon_core.training.trainer import Curve


def curve_picture(curve: Curve, path: Path) -> None:
    """Loss of the training images and of the held-out ones over the steps."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="weighted loss", yscale="log")
    axes.plot(curve.step, curve.loss, label="training, mean since the last point")
    axes.plot(curve.step, curve.validation, label="held out, averaged weights")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def sample_picture(
    prior: Prior,
    corpus: Corpus,
    device: torch.device | str,
    path: Path,
    sigma: float = 0.1,
    count: int = 4,
    edge: int = 192,
) -> None:
    """Held-out images with noise, denoised, and without; those that are noisy themselves are denoised as they are."""
    images, noise = held_out(corpus, count)
    clean = bool((noise == 0).all())
    noisy = with_noise(images, sigma) if clean else images
    # A few images may be less noisy than what the prior claims to know.
    levels = torch.full((count,), sigma) if clean else noise.clamp_min(prior.convention.lowest)
    with torch.no_grad():
        denoised = prior.denoise(noisy.to(device), levels.to(device)).cpu()
    rows = {"noisy": noisy, "denoised": denoised, **({"clean": images} if clean else {"taken away": noisy - denoised})}
    figure = Figure(figsize=(2.5 * count, 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, image, truth in zip(line, row, images, strict=True):
            axes.imshow(image.abs().numpy(), cmap="gray", vmin=0, vmax=_brightest(name, row, images))
            axes.set_title(f"{name}{_told(image, truth) if clean and name != 'clean' else ''}", fontsize=9)
            axes.set_axis_off()
    figure.savefig(path, dpi=100)


def _brightest(name: str, row: Tensor, images: Tensor) -> float:
    """Residuals are shown on a scale of their own."""
    return float((row if name == "taken away" else images).abs().amax())


def _told(image: Tensor, truth: Tensor) -> str:
    return f", {psnr(image, truth):.1f} dB"
