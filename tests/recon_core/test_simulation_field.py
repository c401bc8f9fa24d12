"""The simulated field: its percentile, its smoothness, its cavities."""

import pytest
import torch

from recon_core.simulation import smooth_field
from recon_core.simulation.field import _dipole


def volume(n=48, slices=3) -> tuple[torch.Tensor, torch.Tensor]:
    axis = (torch.arange(n, dtype=torch.float64) - n // 2) * 0.22 / n
    z = (torch.arange(slices, dtype=torch.float64) - 1) * 6e-3
    z, y, x = torch.meshgrid(z, axis, axis, indexing="ij")
    return (x / 0.075) ** 2 + (y / 0.095) ** 2 < 1, torch.stack([x, y, z], dim=-1)


def field(percentile=80.0, seed=0, **options) -> torch.Tensor:
    mask, positions = volume()
    return smooth_field(mask, positions, percentile, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("percentile", [20.0, 150.0])
@pytest.mark.parametrize("sinus", [0.0, 1.0])
def test_the_percentile_inside_the_head_is_the_one_asked_for(percentile, sinus):
    inside = field(percentile, sinus=sinus)[volume()[0]]
    share = (inside.abs() > percentile).double().mean()
    assert 0.008 < share < 0.012
    assert inside.mean() == pytest.approx(0, abs=1e-4)


def test_the_forehead_has_the_strongest_field_if_there_is_a_sinus():
    mask, positions = volume()
    for seed in range(4):
        psi = field(seed=seed, sinus=2.0).where(mask, torch.tensor(0.0))
        x, y, _ = positions.reshape(-1, 3)[psi.argmax()]
        assert abs(x) < 0.02
        assert y < -0.06
        assert psi.flatten(1).amax(1)[0] > psi.flatten(1).amax(1)[2]  # it lies below


def test_without_cavities_the_field_changes_over_centimetres():
    mask, _ = volume()
    psi = field(sinus=0.0)
    assert psi.diff(dim=2)[:, 1:][:, mask[0, 1:, 1:]].abs().max() < 0.12 * 80


def test_a_cavity_makes_a_harmonic_field_of_two_lobes():
    axis = torch.linspace(0.03, 0.05, 41, dtype=torch.float64)
    point = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    lobe, step = _dipole(point, 0.01), 5e-4

    def second(d: int) -> torch.Tensor:
        return lobe.diff(n=2, dim=d).movedim(d, 0)[:, 1:-1, 1:-1].movedim(0, d) / step**2

    laplacian = second(0) + second(1) + second(2)
    assert laplacian.abs().max() < 1e-3 * second(2).abs().max()
    on_axis = _dipole(torch.tensor([0, 0, 0.02], dtype=torch.float64), 0.01)
    beside = _dipole(torch.tensor([0.02, 0, 0], dtype=torch.float64), 0.01)
    assert on_axis / beside == pytest.approx(-2)


def test_a_seed_gives_one_field():
    assert torch.equal(field(seed=3), field(seed=3))
    assert not torch.equal(field(seed=3), field(seed=4))


def test_an_empty_mask_is_refused():
    mask, positions = volume()
    with pytest.raises(ValueError, match="got an empty one"):
        smooth_field(mask & False, positions, 80, torch.Generator())
