import pytest
import torch

from recon_core.disc_edge import disc_edge

Y, X = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
ANYWHERE = (360.0, 360.0)


def disc(radius, width, dent=0.0, centre=(50.0, 45.0)):
    """A disc whose edge falls as an error function; `dent` pulls its radius in and out with twice the angle."""
    y, x = Y - centre[0], X - centre[1]
    r = torch.hypot(y, x)
    reach = radius + dent * torch.cos(2 * torch.atan2(y, x))
    return 0.5 * (1 - torch.special.erf((r - reach) / (width * 2**0.5)))


@pytest.mark.parametrize("brightness", [1.0, 30.0])
def test_a_disc_is_round_and_as_sharp_as_it_was_made(brightness):
    found = disc_edge(brightness * disc(30, 1.0), (49.0, 46.5), 31, ANYWHERE)
    assert found.radius == pytest.approx(30, abs=0.1)
    assert found.out_of_round < 0.1
    assert found.sharpness == pytest.approx(0.383, abs=0.02)  # of an error function of one pixel, within one pixel


def test_blur_makes_it_less_sharp_and_no_less_round():
    found = disc_edge(disc(30, 2.0), (50, 45), 30, ANYWHERE)
    assert found.out_of_round < 0.1
    assert found.sharpness == pytest.approx(0.197, abs=0.01)


def test_an_ellipse_is_out_of_round_by_its_root_mean_square():
    found = disc_edge(disc(30, 1.0, dent=2.0), (50, 45), 30, ANYWHERE)
    assert found.out_of_round == pytest.approx(2 / 2**0.5, rel=0.05)


def test_a_notch_is_left_out():
    image = disc(30, 1.0)
    image[50:, 42:48] = 0  # at 90 degrees
    assert disc_edge(image, (50, 45), 30, (80, 100)).out_of_round < 0.1
    assert disc_edge(image, (50, 45), 30, ANYWHERE).out_of_round > 0.3
