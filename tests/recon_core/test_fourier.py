import math

import pytest
import torch

from recon_core.fourier import fft_centred, ifft_centred, resize_centred

from analytic import complex_noise, direct_sum, grid_trajectory, relative

SHAPES = [(8,), (7,), (6, 9), (5, 4, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_fft_is_the_direct_sum_on_the_grid(shape):
    image = complex_noise(2, *shape, dtype=torch.complex128)
    spectrum = fft_centred(image, range(1, image.ndim))
    truth = direct_sum(image, grid_trajectory(shape)).reshape(image.shape)
    torch.testing.assert_close(spectrum, truth)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_undoes_and_keeps_the_norm(shape):
    image = complex_noise(*shape, dtype=torch.complex128)
    axes = range(image.ndim)
    torch.testing.assert_close(ifft_centred(fft_centred(image, axes), axes), image)
    torch.testing.assert_close(fft_centred(image, axes).norm(), image.norm())


def test_other_axes_are_batch_axes():
    image = complex_noise(3, 4, 5)
    one_by_one = torch.stack([fft_centred(plane, (0,)) for plane in image])
    torch.testing.assert_close(fft_centred(image, (-2,)), one_by_one)


@pytest.mark.parametrize(("old", "new"), [(8, 6), (8, 5), (7, 6), (7, 5), (6, 8), (5, 8), (6, 7), (5, 7), (4, 4)])
def test_resize_keeps_each_index_at_its_distance_from_the_centre(old, new):
    x = torch.arange(old) - old // 2 + 100
    resized = resize_centred(x, (new,))
    distance = torch.arange(new) - new // 2
    present = (distance >= -(old // 2)) & (distance < old - old // 2)
    torch.testing.assert_close(resized, torch.where(present, distance + 100, 0))


def test_resize_crops_and_pads_each_axis_on_its_own():
    x = complex_noise(2, 6, 5)
    resized = resize_centred(x, (4, 9))
    assert resized.shape == (2, 4, 9)
    torch.testing.assert_close(resized[:, :, 2:7], x[:, 1:5])
    assert relative(resized, x[:, 1:5]) == pytest.approx(1)


def test_zero_padding_interpolates_the_same_function():
    image = complex_noise(6, dtype=torch.complex128)
    fine = ifft_centred(resize_centred(fft_centred(image, (0,)), (12,)), (0,))
    torch.testing.assert_close(fine[::2] * math.sqrt(2), image)


@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 4), (-1, 4)])
def test_resize_refuses(shape):
    with pytest.raises(ValueError, match="cannot resize"):
        resize_centred(torch.zeros(4, 4), shape)
