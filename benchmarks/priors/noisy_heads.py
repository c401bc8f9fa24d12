"""Makes noisy complex head images for training without clean ones: each is seen once, with one draw of noise.

python -m benchmarks.priors.noisy_heads heads/train noisy_heads --count 2400 --noise 0.05
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from recon_core.priors.prior import Convention
from recon_core.training.augmentation import Augmentation, patches
from recon_core.training.corpus import read_corpus

EDGE = 224


def main() -> None:
    """Writes files of up to 200 images with white noise of a known level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--noise", type=float, default=0.05)
    chosen = parser.parse_args()
    chosen.target.mkdir(parents=True, exist_ok=True)
    first, *others = read_corpus([chosen.source], Convention("percentile99", 0.01, 160.0))
    corpus = sum(others, first)
    generator = torch.Generator().manual_seed(7)
    for number, start in enumerate(range(0, chosen.count, 200)):
        clean, _ = patches(corpus, min(200, chosen.count - start), EDGE, Augmentation(gain=1.0), generator)
        noisy = clean + chosen.noise * torch.randn(clean.shape, generator=generator)
        images = torch.view_as_complex(noisy.movedim(1, -1).contiguous()).numpy()
        np.savez(chosen.target / f"noisy_{number:02d}.npz", images=images.astype(np.complex64))


if __name__ == "__main__":
    main()
