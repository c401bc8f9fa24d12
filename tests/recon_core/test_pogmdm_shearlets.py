import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d

from recon_core.priors.pogmdm.shearlets import Frequencies, coarse_spectrum, fan_filter, flat_low_pass, spectra


@pytest.fixture
def blocks():
    """Building blocks without any symmetry, as learnt ones are."""
    generator = torch.Generator().manual_seed(3)
    low_pass = flat_low_pass() + 0.02 * torch.randn(9, generator=generator, dtype=torch.float64)
    return low_pass, fan_filter() + 0.01 * torch.randn(17, 17, generator=generator, dtype=torch.float64)


def _stretched(array, factor, axis):
    shape = list(array.shape)
    shape[axis] = factor * (shape[axis] - 1) + 1
    out = np.zeros(shape)
    out[(slice(None),) * axis + (slice(None, None, factor),)] = array
    return out


def _built_by_pixels(low_pass, fan, fine, shear):
    """One shearlet of the first cone, centred on an odd array, step by step as the toolboxes do it."""
    row = low_pass[None, :]
    high = row * (-1.0) ** np.arange(9)
    coarser = [correlate2d(_stretched(taps, 2, 1), row) for taps in (row, high)]
    wavelet = high if fine else coarser[1]
    shearlet = correlate2d(_stretched(fan, 4, 0), coarser[0].T @ wavelet)
    shearlet = np.pad(shearlet, ((0, 0), (60, 60)))
    finer = convolve2d(_stretched(shearlet, 2, 1), row, mode="same")
    half = finer.shape[0] // 2
    sheared = np.stack([np.roll(line, shear * (half - k)) for k, line in enumerate(finer)])
    smooth = convolve2d(sheared, row[:, ::-1], mode="same")
    centre = smooth.shape[1] // 2
    return 2 * smooth[:, centre % 2 :: 2]


def _wrapped(filter_, size):
    """The filter on a periodic grid, its centre at the first pixel."""
    out = np.zeros(size)
    rows, columns = (np.arange(n) - n // 2 for n in filter_.shape)
    np.add.at(out, (rows[:, None] % size[0], columns % size[1]), filter_)
    return out


@pytest.mark.parametrize("size", [(150, 161), (40, 57), (57, 40), (9, 8)])
def test_spectra_are_those_of_filters_built_pixel_by_pixel(blocks, size):
    low_pass, fan = (block.numpy() for block in blocks)
    found = spectra(*blocks, Frequencies.of(size, blocks[0])).numpy()
    for k in range(10):
        filter_ = _built_by_pixels(low_pass, fan, fine=k >= 5, shear=k % 5 - 2)
        for index, pixels in ((k, filter_), (k + 10, filter_.T)):
            expected = np.fft.rfft2(_wrapped(pixels, size))
            assert np.abs(found[index] - expected).max() < 1e-12


def test_the_second_cone_is_the_first_one_transposed(blocks):
    turned = np.fft.irfft2(spectra(*blocks, Frequencies.of((30, 41), blocks[0])).numpy(), s=(30, 41))[10:]
    straight = np.fft.irfft2(spectra(*blocks, Frequencies.of((41, 30), blocks[0])).numpy(), s=(41, 30))[:10]
    np.testing.assert_allclose(turned, straight.swapaxes(-1, -2), atol=1e-13)


def test_shearlets_stop_the_mean_and_the_low_pass_filter_keeps_it():
    everywhere = Frequencies.of((64, 64), flat_low_pass())
    assert spectra(flat_low_pass(), fan_filter(), everywhere)[:, 0, 0].abs().max() < 1e-12
    assert coarse_spectrum(flat_low_pass(), everywhere)[0, 0].abs() == pytest.approx(1)


def test_the_fan_passes_one_pair_of_quadrants():
    spectrum = torch.fft.fft2(fan_filter(), s=(64, 64)).abs()
    assert spectrum[2, 32] > 100 * spectrum[32, 2]
    assert fan_filter().abs().sum() == pytest.approx(1)


def test_spectra_are_differentiable_in_the_building_blocks(blocks):
    inputs = [block.requires_grad_() for block in blocks]
    assert torch.autograd.gradcheck(
        lambda h, p: spectra(h, p, Frequencies.of((6, 7), h)).abs().square().sum((1, 2)), inputs
    )
