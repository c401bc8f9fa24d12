"""The head phantom: reproducible, independent of the grid, and made of the tissues it claims."""

from functools import cache

import pytest
import torch
from torch.nn.functional import avg_pool2d

from recon_core.simulation import head


@cache
def drawn(matrix=(48, 48), levels=(8.0,), seed=0, fov=220.0):
    return head(matrix, fov / max(matrix), levels, torch.Generator().manual_seed(seed))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_seed_gives_one_head_and_another_seed_another():
    first, again, other = drawn(), drawn.__wrapped__(), drawn(seed=2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert difference(other[0], first[0]) > 0.1


def test_the_same_head_comes_on_every_grid():
    coarse, fine = drawn()[0], drawn((144, 144))[0]
    # Blocks of three pixels whose middle is the pixel of the coarse grid.
    aligned = avg_pool2d(fine.roll((1, 1), (1, 2)), 3)
    assert difference(aligned, coarse) < 0.06


def test_slices_are_distinct_and_stay_the_same_in_company():
    both, alone = drawn(levels=(8.0, 26.0))[0], drawn(levels=(26.0,))[0]
    assert torch.equal(both[1:], alone)
    assert difference(both[0], both[1]) > 0.2


@pytest.mark.parametrize("matrix", [(60, 40), (40, 60), (49, 47)])
def test_the_head_is_centred_on_any_matrix(matrix):
    _, mask = drawn(matrix)
    y, x = (axis.double().mean() for axis in mask[0].nonzero(as_tuple=True))
    assert abs(y - matrix[0] // 2) < 2
    assert abs(x - matrix[1] // 2) < 1


def test_the_head_has_the_size_of_a_head():
    _, mask = drawn((110, 110))
    assert 190 < 2 * mask[0].any(1).sum() < 200  # mm
    assert 148 < 2 * mask[0].any(0).sum() < 164


def test_signal_stays_inside_the_mask_and_shows_the_tissues():
    magnitude, mask = drawn((256, 256))
    assert magnitude.dtype == torch.float32
    assert magnitude[~mask].max() < 0.5  # pixels on the edge
    assert (magnitude >= 0).all()
    share = torch.histc(magnitude[mask], bins=10, min=0, max=1) / mask.sum()
    background, fluid, grey, white, fat = share[0], share[1], share[4], share[7] + share[6], share[9] + share[8]
    for part in (background, fluid, grey, fat):
        assert 0.02 < part < 0.2
    assert 0.2 < white < 0.5


def test_left_and_right_are_alike_but_not_the_same():
    magnitude = drawn((49, 49))[0]
    assert 0.1 < difference(magnitude.flip(2), magnitude) < 0.5


def test_slices_outside_the_head_are_refused():
    with pytest.raises(ValueError, match="from -6 to 66 mm, got one at 80 mm"):
        drawn(levels=(8.0, 80.0))
