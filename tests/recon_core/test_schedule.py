import math

import pytest
import torch

from recon_core.priors.prior import Convention, Prior
from recon_core.solvers.schedule import falling_levels

from gaussian_problem import Gaussian, prior_of, white

KNOWN = prior_of(Gaussian(white()), Convention("percentile99", 0.02, 5.0))


def test_each_level_is_the_same_fraction_of_the_one_before():
    assert falling_levels(KNOWN, 1.6, 0.1, 5) == pytest.approx([1.6, 0.8, 0.4, 0.2, 0.1])


def test_one_level_is_the_highest():
    assert falling_levels(KNOWN, 1.0, 0.1, 1) == [1.0]


def test_levels_end_where_the_prior_does():
    levels = falling_levels(KNOWN, 50.0, 0.001, 7)
    assert (levels[0], levels[-1]) == pytest.approx((5.0, 0.02))
    for level in levels:
        KNOWN.denoise(torch.zeros(12, 12, dtype=torch.complex64), level)


@pytest.mark.parametrize(
    ("highest", "lowest", "count"),
    [(1.0, 0.1, 0), (1.0, 1.0, 5), (0.1, 1.0, 5), (0.01, 0.005, 5), (20.0, 10.0, 5), (math.nan, 0.1, 5)],
)
def test_levels_that_do_not_fall_within_what_the_prior_knows(highest, lowest, count):
    with pytest.raises(ValueError, match=r"levels that fall, got .* \(the Gaussian prior knows 0.02 to 5\)"):
        falling_levels(KNOWN, highest, lowest, count)


def test_refusal_names_the_prior():
    prior = Prior(lambda channels, sigma: channels, Convention("maximum", 0.5, 1.0), "a network of mine")
    with pytest.raises(ValueError, match="a network of mine knows 0.5 to 1"):
        falling_levels(prior, 0.4, 0.1, 3)
