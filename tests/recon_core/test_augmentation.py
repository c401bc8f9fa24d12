import math

import pytest
import torch

from recon_core.training.augmentation import KEEPS_NOISE, Augmentation, patches
from recon_core.training.corpus import Corpus

AS_THEY_ARE = Augmentation(smallest=1.0, contrast=0.0, gain=1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def magnitudes(count, *shape):
    return Corpus([image.half() for image in torch.rand(count, *shape, generator=generator(1)) + 0.1])


def of_one(image, noise=0.0):
    """A corpus of one image, complex or real."""
    pixels = torch.view_as_real(image) if image.is_complex() else image
    return Corpus([pixels.half()], torch.tensor([noise]))


def drawn(corpus, augmentation, edge=32, count=8, seed=0):
    """Complex patches, and the noise in them."""
    channels, noise = patches(corpus, count, edge, augmentation, generator(seed))
    assert channels.shape == (count, 2, edge, edge)
    assert channels.dtype == torch.float32
    return torch.complex(channels[:, 0], channels[:, 1]), noise


def in_all_orientations(image):
    turned = [torch.rot90(image, quarter) for quarter in range(4)]
    return [*turned, *(image.flip(-1) for image in turned)]


def holds(patch, image, tolerance=1e-3):
    """Where in the image, turned or mirrored, the patch is: the orientation's number and the corner."""
    edge = len(patch)
    for orientation, turned in enumerate(in_all_orientations(image)):
        windows = turned.unfold(0, edge, 1).unfold(1, edge, 1)
        error = (windows - patch).abs().amax((-2, -1))
        if error.min() < tolerance:
            return orientation, *divmod(int(error.argmin()), error.shape[1])
    return None


def test_the_same_seed_gives_the_same_patches():
    corpus = magnitudes(5, 60, 50)
    for augmentation in (Augmentation(), KEEPS_NOISE):
        first, again = (drawn(corpus, augmentation, seed=3)[0] for _ in range(2))
        other, _ = drawn(corpus, augmentation, seed=4)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_the_generator_alone_decides():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn(magnitudes(5, 60, 50), Augmentation())
    assert torch.equal(torch.get_rng_state(), state)


def test_patches_are_windows_of_the_images_in_all_orientations_and_places():
    image = magnitudes(1, 24, 30)[0]
    found, _ = drawn(of_one(image), AS_THEY_ARE, edge=16, count=80)
    places = {holds(patch.abs(), image) for patch in found}
    assert None not in places
    assert {place[0] for place in places} == set(range(8))
    assert len({place[1:] for place in places}) > 40


def test_all_images_are_drawn():
    corpus = Corpus([torch.full((20, 20), float(n)).half() for n in range(1, 6)], torch.arange(1, 6) / 10)
    found, noise = drawn(corpus, AS_THEY_ARE, edge=8, count=60)
    assert {round(float(patch.abs().mean())) for patch in found} == {1, 2, 3, 4, 5}
    # The noise belongs to the image.
    torch.testing.assert_close(noise, found.abs().mean((1, 2)) / 10)


def test_images_are_shrunk_by_the_factors_asked_for():
    """The frequency of a wave tells the factor."""
    wave = 1.5 + torch.cos(2 * math.pi * torch.arange(128) / 16)
    corpus = of_one(wave[:, None] + wave)
    found, _ = drawn(corpus, Augmentation(smallest=0.5, contrast=0.0, gain=1.0), edge=64, count=60)
    profiles = found.abs().mean(2) - found.abs().mean((1, 2))[:, None]
    spectrum = torch.fft.rfft(profiles, 1024).abs()
    cycles = spectrum.argmax(1) / 1024 * 64  # in 64 pixels; 4 if nothing were shrunk
    assert 3.8 < cycles.min() < 4.5
    assert 7 < cycles.max() < 8.2
    assert cycles.std() > 0.7


def test_shrunk_images_do_not_alias():
    """At half the size, stripes of three pixels are finer than the grid."""
    stripes = (torch.arange(128) % 3 == 0).float().expand(128, 128)
    found, _ = drawn(of_one(stripes), Augmentation(smallest=0.5, contrast=0.0, gain=1.0), edge=62, count=40)
    ripple = found.abs()[:, 4:-4, 4:-4].std((1, 2))
    assert ripple.min() < 0.15  # a sixth of its 0.47, where plain interpolation would leave two thirds


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
def test_small_images_stand_amid_air(kind):
    image = torch.rand(20, 40, generator=generator(1)) + 0.1
    found, _ = drawn(of_one(image.to(kind)), AS_THEY_ARE, edge=32)
    for patch in found:
        upright = patch.abs() if (patch.abs().amax(1) == 0).any() else patch.abs().T
        filled = upright.amax(1) > 0
        assert filled.tolist() == [False] * 6 + [True] * 20 + [False] * 6
        assert holds(upright[filled][:, :20], image) is not None


def white(noise, *shape):
    return noise * torch.randn(*shape, dtype=torch.complex64, generator=generator(5)) * math.sqrt(2)


@pytest.mark.parametrize("size", [(128, 128), (128, 40)])
def test_noise_stays_white_and_of_its_level(size):
    """Its gain included, and in the air about a small image."""
    corpus = Corpus([torch.view_as_real(white(0.2, *size)).half() for _ in range(4)], torch.full((4,), 0.2))
    found, noise = drawn(corpus, KEEPS_NOISE, edge=64, count=64)
    assert noise.min() < 0.18
    assert noise.max() > 0.22
    unit = torch.view_as_real(found / noise[:, None, None])
    count = found.numel()
    # Bounds the standard errors of variances and correlations: patches of four images overlap.
    error = 2 / math.sqrt(4 * size[0] * size[1])
    assert unit.var((0, 1, 2)).tolist() == pytest.approx([1, 1], abs=3 * error)
    each = unit.var((1, 2, 3))
    assert (each - 1).abs().max() < 6 / 64
    for one, other in ((unit[:, 1:], unit[:, :-1]), (unit[:, :, 1:], unit[:, :, :-1]), (unit[..., 0], unit[..., 1])):
        assert abs(float((one * other).sum() / (2 * count))) < 3 * error


def test_complex_images_get_nothing_but_a_constant_phase():
    phase = torch.rand(64, 64, generator=generator(2)) * 6
    image = torch.polar(torch.rand(64, 64, generator=generator(3)) + 0.1, phase)
    found, _ = drawn(of_one(image), Augmentation(smallest=1.0, gain=1.0), edge=16, count=40)
    constants = []
    for patch in found:
        place = holds(patch.abs(), image.abs())
        assert place is not None
        orientation, top, left = place
        original = in_all_orientations(image)[orientation][top : top + 16, left : left + 16]
        turn = patch / original
        assert (turn - turn.mean()).abs().max() < 0.01
        constants.append(torch.angle(turn.mean()))
    spread = torch.stack(constants)
    assert spread.max() > 2
    assert spread.min() < -2
    assert torch.exp(1j * spread).mean().abs() < 0.4


def along(images, axis):
    """Phase steps from pixel to pixel."""
    n = images.shape[axis]
    return torch.angle(images.narrow(axis, 1, n - 1) * images.narrow(axis, 0, n - 1).conj())


def test_the_phase_of_magnitude_images_is_smooth_and_bounded():
    """Half of them have a cubic, whose fourth differences are nothing, mixed ones included; others a bump on it."""
    found, _ = drawn(of_one(torch.ones(64, 64)), Augmentation(smallest=1.0, contrast=0.0, phase=2.0), edge=64, count=80)
    down, across = along(found, 1), along(found, 2)
    fourths = (down.diff(3, dim=1), across.diff(3, dim=2), down.diff(dim=1).diff(2, dim=2))
    cubic = torch.stack([fourth.abs().amax((1, 2)) for fourth in fourths]).amax(0) < 2e-5
    assert 0.3 < cubic.double().mean() < 0.7
    excursion = (down.cumsum(1).amax(1) - down.cumsum(1).amin(1)).amax(1)
    assert 1.5 < excursion[cubic].max() < 4  # from -2 to 2 at most
    assert 4 < excursion.max() < 10  # a bump adds up to 6
    assert max(down.abs().max(), across.abs().max()) < 1.5


def test_fat_has_a_phase_of_its_own():
    """Bright and dark halves: in three of ten images the phase jumps between them."""
    halves = torch.full((64, 64), 0.1)
    halves[32:] = 1.0
    found, _ = drawn(of_one(halves), Augmentation(smallest=1.0, contrast=0.0, phase=2.0), edge=64, count=200)
    sides = found.abs() > 0.5
    upright = (sides.all(2) | (~sides).all(2)).all(1)
    images = torch.where(upright[:, None, None], found, found.mT)
    jump = along(images, 1)[:, 31].abs().amax(1)
    usual = along(images, 1)[:, 20].abs().amax(1)
    assert 0.1 < (jump > usual + 0.3).double().mean() < 0.35


def test_without_phase_only_a_constant_is_left():
    found, _ = drawn(of_one(torch.ones(40, 40)), Augmentation(smallest=1.0, contrast=0.0, phase=0.0), edge=32)
    assert (found - found[:, :1, :1]).abs().max() < 1e-5


def test_the_gain_is_up_to_its_limit_or_the_inverse():
    found, _ = drawn(of_one(torch.ones(20, 20)), Augmentation(smallest=1.0, contrast=0.0, gain=1.5), 16, 200)
    gains = found.abs().mean((1, 2))
    assert 1 / 1.5 <= gains.min() < 0.72
    assert 1.4 < gains.max() <= 1.5
    assert float(gains.log().mean()) == pytest.approx(0, abs=0.05)


def ramp(highest):
    """Every intensity from zero on along the first axis."""
    return torch.linspace(0, highest, 64)[:, None].expand(64, 64)


def curves(augmentation, highest=1.0, count=60):
    """What becomes of the intensities of a ramp, `[count, 64]`."""
    found, _ = drawn(of_one(ramp(highest)), augmentation, edge=64, count=count)
    lines = []
    for magnitude in found.abs():
        upright = magnitude if magnitude.std(1).max() < 1e-5 else magnitude.T
        lines.append(upright[:, 0] if upright[0, 0] < 1e-6 else upright[:, 0].flip(0))
    return torch.stack(lines)


CONTRAST = Augmentation(smallest=1.0, contrast=1.0, gain=1.0)


def test_other_contrasts_keep_air_dark_and_the_scale():
    lines = curves(CONTRAST, count=400)
    assert lines[:, 0].abs().max() < 1e-6
    assert lines.min() >= 0
    # The noise of air is at most doubled; tissue is nowhere brighter than the scale, and mostly near it.
    assert lines[:, 1].max() <= 2 * ramp(1.0)[1, 0] + 1e-5
    assert lines.amax(1).max() <= 1 + 1e-5
    assert lines.amax(1).median() > 0.8
    assert lines.std(0).max() > 0.2  # and no two are alike


def test_other_contrasts_are_continuous_and_differ_in_order():
    lines = curves(CONTRAST)
    assert lines.diff(dim=1).abs().max() <= 4 / 63 + 1e-5  # nowhere steeper than two, at most doubled
    rising = (lines.diff(dim=1) > 0).float().mean(1)
    assert ((rising > 0.2) & (rising < 0.95)).sum() > 20  # other weightings turn contrasts round


def test_other_contrasts_go_on_beyond_the_scale():
    lines = curves(CONTRAST, highest=2.0)
    inside, outside = lines[:, 31], lines[:, 63]  # at intensities of 0.98 and 2
    assert (outside - 2 * inside).abs().max() < 2 * 6 * 0.02
    assert lines.diff(dim=1).abs().max() < 6 * 2 / 63 + 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_other_contrasts(share):
    lines = curves(Augmentation(smallest=1.0, contrast=share, gain=1.0), count=200)
    changed = (lines - ramp(1.0)[:, 0]).abs().amax(1) > 1e-3
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.1)
