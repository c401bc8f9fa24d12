"""Linear interpolation against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from recon_core.interpolate import interpolated


@pytest.mark.parametrize("shape", [(7, 9), (4, 7, 5), (1, 6, 5)])
def test_scipy_agrees(shape):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape)
    points = rng.uniform(-2, max(shape) + 1, (11, 3, len(shape)))
    expected = ndimage.map_coordinates(values, np.moveaxis(points, -1, 0), order=1, mode="nearest")
    found = interpolated(torch.from_numpy(values), torch.from_numpy(points))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_precision_stays():
    assert interpolated(torch.ones(3, 3), torch.zeros(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("shape", "axes"), [((4,), 1), ((4, 4), 3), ((2, 2, 2, 2), 4)])
def test_other_numbers_of_axes_are_refused(shape, axes):
    with pytest.raises(ValueError, match="expected a map of 2 or 3 axes and points with as many"):
        interpolated(torch.ones(shape), torch.zeros(5, axes))
