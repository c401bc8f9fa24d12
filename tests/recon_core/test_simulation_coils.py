"""Coil maps against what physics says about loops."""

import math

import pytest
import torch

from recon_core.simulation.coils import _WIRE_RADIUS_M, _loops, _sensitivity, coil_maps


def plane(n=48, fov=0.22, z=0.0) -> torch.Tensor:
    x = (torch.arange(n, dtype=torch.float64) - n // 2) * fov / n
    y, x = torch.meshgrid(x, x, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, z)], dim=-1)


@pytest.mark.parametrize("coils", [1, 4, 8, 20, 32])
def test_maps_have_unit_root_sum_of_squares_everywhere(coils):
    maps = coil_maps(coils, plane())
    assert maps.shape == (coils, 48, 48)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(48, 48))


def test_on_the_axis_of_a_loop_the_field_is_that_of_the_textbook():
    radius = 0.06
    distance = torch.linspace(-0.1, 0.1, 9, dtype=torch.float64)
    normal = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    on_axis = distance[:, None] * normal
    found = _sensitivity(torch.zeros(3, dtype=torch.float64), normal, torch.tensor(radius), on_axis)
    expected = 2 * math.pi * radius**2 / (radius**2 + distance**2 + _WIRE_RADIUS_M**2) ** 1.5
    # The loop is summed over segments of unit length along the angle.
    scale = (found.real / expected)[0]
    torch.testing.assert_close(found.real, expected * scale)
    torch.testing.assert_close(found.imag, torch.zeros_like(distance), atol=1e-9, rtol=0)


def test_every_coil_sees_best_what_is_next_to_it():
    maps, positions = coil_maps(8, plane()).abs(), plane()[..., :2]
    centres = _loops(8)[0][:, :2]
    head = positions.norm(dim=-1) < 0.09
    for magnitude, centre in zip(maps, centres, strict=True):
        brightest = positions[head][magnitude[head].argmax()]
        assert torch.cosine_similarity(brightest, centre, dim=0) > 0.95


def test_turning_the_head_by_one_coil_gives_the_next_coils_map():
    step = 2 * math.pi / 8
    turn = torch.tensor(
        [[math.cos(step), -math.sin(step), 0], [math.sin(step), math.cos(step), 0], [0, 0, 1]], dtype=torch.float64
    )
    here, there = coil_maps(8, plane(z=0.02)), coil_maps(8, plane(z=0.02) @ turn.T)
    # The direction of the field turns along, hence the phase.
    factor = complex(math.cos(step), -math.sin(step))
    torch.testing.assert_close(there.roll(-1, 0), here * factor, atol=1e-5, rtol=1e-4)


def test_maps_are_smooth_and_differ_in_phase():
    maps = coil_maps(8, plane(128))
    head = plane(128)[..., :2].norm(dim=-1)[1:, 1:] < 0.1
    assert maps.diff(dim=1)[:, :, 1:][:, head].abs().max() < 0.04
    assert maps.diff(dim=2)[:, 1:][:, head].abs().max() < 0.04
    assert maps[:, 64, 64].angle().std() > 1


def test_many_coils_stand_on_rings_so_that_slices_differ():
    low, high = coil_maps(24, plane(z=-0.04)), coil_maps(24, plane(z=0.04))
    assert (low - high).abs().max() > 0.3
    with pytest.raises(ValueError, match="at least one coil, got 0"):
        coil_maps(0, plane())
