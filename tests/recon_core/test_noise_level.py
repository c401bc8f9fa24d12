"""Noise levels estimated from images alone."""

from __future__ import annotations

import pytest
import torch

from recon_core.simulation import head
from recon_core.training.noise_level import estimate_noise


def _head(edge: int) -> torch.Tensor:
    line = torch.linspace(-1, 1, edge)
    magnitude, _ = head((edge, edge), 240 / edge, [30.0], torch.Generator().manual_seed(3))
    return magnitude[0] * torch.exp(1j * (2 * line[:, None] + line**2))


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.2])
def test_the_level_of_noise_on_a_head_is_found_within_five_percent(sigma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = sigma * torch.view_as_complex(torch.randn(192, 191, 2, generator=generator))
    assert estimate_noise(_head(192)[:, :191] + noise) == pytest.approx(sigma, rel=0.05)


def test_zeros_that_were_filled_in_do_not_count() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.zeros(192, 192, dtype=torch.complex64)
    image[64:128, 64:128] = 0.1 * torch.view_as_complex(torch.randn(64, 64, 2, generator=generator))
    assert estimate_noise(image) == pytest.approx(0.1, rel=0.05)


def test_magnitudes_and_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="complex image"):
        estimate_noise(torch.ones(8, 8))
    with pytest.raises(ValueError, match="zeros"):
        estimate_noise(torch.zeros(8, 8, dtype=torch.complex64))
