"""Field maps from exact synthetic echoes of known fields."""

from __future__ import annotations

import math

import pytest
import torch

from recon_core.calibration.field_map import field_from_echoes

from analytic import complex_noise

SHAPE = (48, 56)
Y, X = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2 for n in SHAPE], indexing="ij")
DISC = torch.hypot(X / 22, Y / 19) < 1
TWO, EVEN, UNEVEN = (4e-3, 9e-3), (4e-3, 6e-3, 8e-3), (4e-3, 9e-3, 15e-3)


def echoes(field, times, inside=DISC, noise=0.0, coils=3, seed=0):
    """exp(-2 pi i psi t) of a disc under coils of random phases and phase slopes, `[echo, coil, y, x]`."""
    random = torch.rand(3, coils, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    phases = 2 * math.pi * random[0] + 0.3 * (random[1] - 0.5) * X + 0.3 * (random[2] - 0.5) * Y
    sensitivities = torch.polar(torch.linspace(0.5, 1, coils)[:, None, None] * torch.ones_like(X), phases)
    image = inside * (1 + 0.3 * torch.cos(X / 4))
    clean = torch.stack([torch.exp(-2j * math.pi * field * t) * math.exp(-t / 30e-3) for t in times])[:, None]
    random = complex_noise(len(times), coils, *SHAPE, seed=seed + 1, dtype=torch.complex128)
    return clean * sensitivities * image + noise * random


def deviation(found, truth, where=DISC):
    return (found - truth)[where].square().mean().sqrt().item()


@pytest.mark.parametrize("times", [TWO, EVEN, UNEVEN])
@pytest.mark.parametrize("field", [5 * X - 7 * Y, 60 + 0.2 * X * Y, -30 + 0.5 * X], ids=["ramp", "saddle", "flat"])
def test_fields_that_wrap_come_back_with_their_sign(times, field):
    found = field_from_echoes(echoes(field, times), times)
    assert deviation(found.field_hz, field) < 1e-6
    assert torch.equal(found.regions > 0, DISC)
    assert not found.field_hz[~DISC].any()
    assert torch.isinf(found.deviation_hz[~DISC]).all()


@pytest.mark.parametrize("shift", [-410.0, 190.0, 330.0])
def test_unevenly_spaced_echoes_tell_fields_beyond_half_of_one_over_the_spacing(shift):
    field = shift + 2 * X
    found = field_from_echoes(echoes(field, UNEVEN, noise=0.05), UNEVEN)
    assert found.resolved
    assert deviation(found.field_hz, field) < 2


@pytest.mark.parametrize(("times", "alias"), [(TWO, 200.0), (EVEN, 500.0)])
def test_evenly_spaced_echoes_leave_an_alias_and_the_one_nearest_to_zero_is_taken(times, alias):
    field = 0.9 * alias + 1.0 * X
    found = field_from_echoes(echoes(field, times), times)
    assert not found.resolved
    assert deviation(found.field_hz, field - alias) < 1e-6


def test_separate_regions_have_aliases_of_their_own():
    left, right = DISC & (X < -4), DISC & (X > 4)
    field = torch.where(left, 230 + X, -250 + 3 * Y)
    found = field_from_echoes(echoes(field, UNEVEN, left | right, noise=0.02), UNEVEN)
    assert deviation(found.field_hz, field, left) < 2
    assert deviation(found.field_hz, field, right) < 2


def test_aliases_that_the_echoes_hardly_tell_apart_count_as_unresolved():
    times = (4e-3, 9e-3, 14.01e-3)
    found = field_from_echoes(echoes(30 + X, times), times)
    assert not found.resolved
    assert deviation(found.field_hz, 30 + X) < 1e-6


@pytest.mark.parametrize("times", [TWO, EVEN, UNEVEN])
def test_the_spread_under_unit_noise_is_the_one_stated(times):
    """Over many draws of the noise, at a signal of 20 to 30 times it."""
    field = 20 + X
    found = [field_from_echoes(25 * echoes(field, times, noise=1 / 25, seed=7 * n), times) for n in range(30)]
    ratio = torch.stack([((f.field_hz - field) / f.deviation_hz)[DISC] for f in found])
    assert ratio.square().mean().sqrt().item() == pytest.approx(1, abs=0.03)


def test_all_echoes_together_spread_less_than_any_two():
    times = (3e-3, 5e-3, 8e-3, 12e-3)
    data = echoes(20 + X, times, noise=0.1)
    all_of_them = deviation(field_from_echoes(data, times).field_hz, 20 + X)
    for first in range(3):
        for second in range(first + 1, 4):
            pair = [first, second]
            two = field_from_echoes(data[pair], [times[i] for i in pair])
            assert all_of_them < deviation(two.field_hz, 20 + X)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.5])
def test_noise_is_no_signal_whatever_the_threshold(threshold):
    found = field_from_echoes(echoes(20 + X, TWO, noise=0.03), TWO, threshold)
    assert not found.regions[~DISC].any()
    assert (found.regions[DISC] > 0).double().mean() > 0.99


def test_dark_pixels_are_no_signal():
    dim = DISC & (X > 10)
    data = echoes(20 + X, TWO) * torch.where(dim, 0.05, 1.0)
    assert torch.equal(field_from_echoes(data, TWO, 0.1).regions > 0, DISC & ~dim)
    assert torch.equal(field_from_echoes(data, TWO, 0.01).regions > 0, DISC)


def test_three_axes_and_single_precision():
    z, y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (6, 20, 20)], indexing="ij")
    field = 12 * z + 5 * y - 8 * x
    data = torch.stack([torch.exp(-2j * math.pi * field * t) for t in TWO])[:, None]
    found = field_from_echoes(data, TWO).field_hz
    alias = 200 * ((found - field).mean() / 200).round()
    assert found.dtype == torch.float32
    assert (found - field - alias).abs().max() < 1e-2


def test_no_signal_gives_an_empty_map():
    found = field_from_echoes(torch.zeros(2, 1, *SHAPE, dtype=torch.complex64), TWO)
    assert not found.field_hz.any()
    assert not found.regions.any()
    assert not found.resolved


@pytest.mark.parametrize("shape", [(1, 24), (2, 3, 24)])
def test_other_axes_may_be_short(shape):
    field = 3 * torch.arange(24.0, dtype=torch.float64).expand(shape)
    data = torch.stack([torch.exp(-2j * math.pi * field * t) for t in TWO])[:, None]
    assert (field_from_echoes(data, TWO).field_hz - field).abs().max() < 1e-6


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 1.1])
def test_a_threshold_that_is_no_part_is_refused(threshold):
    with pytest.raises(ValueError, match=f"a threshold from 0 to 1, got {threshold:g}"):
        field_from_echoes(echoes(20 + X, TWO), TWO, threshold)


@pytest.mark.parametrize(("data", "times", "message"), [
    (torch.ones(2, 1, 8, 8), TWO, "expected complex echoes"),
    (torch.ones(1, 1, 8, 8) * 1j, TWO[:1], "two echoes or more and a time of each, got 1 and 1"),
    (torch.ones(3, 1, 8, 8) * 1j, TWO, "got 3 and 2"),
    (torch.ones(2, 1, 8, 8) * 1j, (5e-3, 5e-3), "that rise from echo to echo, got 5, 5 ms"),
    (torch.ones(2, 1, 8, 2) * 1j, TWO, "at least 4 pixels along the last axis"),
    (torch.full((2, 1, 8, 8), complex(math.nan)), TWO, "not finite"),
])  # fmt: skip
def test_mistakes(data, times, message):
    with pytest.raises(ValueError, match=message):
        field_from_echoes(data, times)
