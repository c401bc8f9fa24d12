"""Resampling against analytic band-limited functions and against zero-filled and cropped FFTs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.resample import resample_centred


def noise(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def through_kspace(x: np.ndarray, size: int) -> np.ndarray:
    """Last axis zero-filled or cropped in k-space about its centre; values kept."""
    old = x.shape[-1]
    kspace = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(x, axes=-1)), axes=-1)
    resized = np.zeros((*x.shape[:-1], size), complex)
    shared = min(old, size)
    source, target = old // 2 - shared // 2, size // 2 - shared // 2
    resized[..., target : target + shared] = kspace[..., source : source + shared]
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(resized, axes=-1)), axes=-1) * size / old


@pytest.mark.parametrize(
    ("old", "size"), [(12, 12), (12, 18), (12, 17), (11, 18), (11, 23), (18, 12), (18, 11), (17, 8)]
)
def test_same_field_of_view_is_resizing_in_kspace(old, size):
    x = noise(3, old)
    result = resample_centred(x, -1, size, old / size)
    np.testing.assert_allclose(result, through_kspace(x.numpy(), size), atol=1e-12)


@pytest.mark.parametrize(("old", "size", "start"), [(16, 8, 4), (16, 7, 5), (15, 8, 3), (15, 7, 4)])
def test_same_pixel_size_is_cropping_about_the_centre(old, size, start):
    x = noise(old, 2)
    torch.testing.assert_close(resample_centred(x, 0, size, 1.0), x[start : start + size])


def test_no_change_is_exact():
    x = noise(5, 6)
    assert resample_centred(x, 1, 6, 1.0) is x


@pytest.mark.parametrize("step", [0.73, 1.31])
def test_fractional_pixels_give_the_function_itself(step):
    """Three waves that both grids can hold, where neither sizes nor fields of view come to whole pixels."""
    old, size = 20, 13
    frequencies, weights = np.array([-6, 1, 7]), np.array([1 + 2j, -0.5, 1j])

    def wave(position):
        return np.exp(2j * np.pi * np.outer(position, frequencies) / old) @ weights

    x = torch.from_numpy(wave(np.arange(old) - old // 2))
    expected = wave(step * (np.arange(size) - size // 2))
    np.testing.assert_allclose(resample_centred(x, 0, size, step), expected, atol=1e-12)


def test_coarse_grid_drops_what_it_cannot_hold():
    old = 32
    wave = torch.exp(2j * torch.pi * 9 * torch.arange(old) / old)
    assert resample_centred(wave, 0, 16, 2.0).abs().max() < 1e-5
    assert resample_centred(torch.ones_like(wave), 0, 16, 2.0).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(("size", "step"), [(0, 1.0), (4, 0.0), (4, -1.0)])
def test_refuses_empty_grids(size, step):
    with pytest.raises(ValueError, match="positive size and step"):
        resample_centred(noise(4), 0, size, step)
