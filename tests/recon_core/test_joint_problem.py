"""Truth: dense matrices, and differences of the misfit written out as a sum over samples."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention
from recon_core.solvers import coil_fit
from recon_core.solvers.coil_fit import CoilFit
from recon_core.solvers.joint_problem import JointProblem, normalised

from analytic import complex_noise, direct_sum, radial_trajectory, relative, ring_of_coils, smooth_head

N, COILS = 12, 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return complex_noise(*shape, seed=seed, dtype=torch.complex128)


@pytest.fixture(scope="module")
def radial() -> tuple[JointProblem, Tensor, Tensor]:
    """A problem with a unit of its own, its samples and its trajectory."""
    trajectory = radial_trajectory(N, 7, 16).double()
    kspace = direct_sum(ring_of_coils(N, COILS) * smooth_head(N), trajectory)
    problem = JointProblem.of(Encoding(sampling_operator(trajectory, (N, N))), kspace)
    return JointProblem(problem.single, problem.data, problem.energy, torch.tensor(3.0), problem.first_maps), *(
        kspace,
        trajectory,
    )


def written_out(image: Tensor, maps: Tensor, kspace: Tensor, trajectory: Tensor, unit: float) -> float:
    return float((unit * direct_sum(maps * image, trajectory) - kspace).abs().square().sum())


def test_misfit_is_that_of_the_samples(radial):
    problem, kspace, trajectory = radial
    image, maps = noise(N, N), noise(COILS, N, N, seed=1)
    truth = written_out(image, maps, kspace, trajectory, 3.0)
    assert abs(float(problem.misfit(image, maps)) / truth - 1) < 1e-4


def test_slices_have_fields_units_and_samples_of_their_own():
    """Two slices, two draws of each, every sample with the phase of the field at its time."""
    trajectory = radial_trajectory(N, 7, 16).double()
    times = torch.linspace(0.002, 0.01, 16).double().expand(7, 16)
    field_hz = 60 * noise(2, N, N).real.clamp(-1, 1)
    kspace, units = noise(2, COILS, 7, 16), torch.tensor([3.0, 2.0]).double()
    encoding = Encoding(sampling_operator(trajectory, (N, N)), LowRank(times, -100, 100, 1e-5))
    problem = replace(JointProblem.of(encoding, kspace, field_hz), unit=units)
    image, maps = noise(2, 2, N, N, seed=1), noise(2, 2, COILS, N, N, seed=2)

    def signal(coil_images: Tensor, field_hz: Tensor) -> Tensor:
        """Each column of samples has one time."""
        turned = [coil_images * torch.exp(-2j * torch.pi * field_hz * t) for t in times[0]]
        columns = trajectory.split(1, dim=-1)
        return torch.cat([direct_sum(x, k) for x, k in zip(turned, columns, strict=True)], -1)

    for draw in range(2):
        for z in range(2):
            predicted = units[z] * signal(maps[draw, z] * image[draw, z], field_hz[z])
            truth = (predicted - kspace[z]).abs().square().sum()
            assert abs(float(problem.misfit(image, maps)[draw, z] / truth) - 1) < 1e-4
            assert abs(float(problem.given(maps).misfit(image)[draw, z] / truth) - 1) < 1e-4


@pytest.mark.parametrize("which", ["image", "maps"])
def test_gradients_are_the_slopes_of_the_misfit(radial, which):
    problem, kspace, trajectory = radial
    image, maps = noise(N, N), noise(COILS, N, N, seed=1)
    residual = problem.residual(image, maps)
    if which == "image":
        way, gradient = noise(N, N, seed=2), 2 * (maps.conj() * residual).sum(0)
        moved = [(image + h * way, maps) for h in (1e-3, -1e-3)]
    else:
        way, gradient = noise(COILS, N, N, seed=2), 2 * image.conj() * residual
        moved = [(image, maps + h * way) for h in (1e-3, -1e-3)]
    up, down = (written_out(x, s, kspace, trajectory, 3.0) for x, s in moved)
    expected = float((gradient.conj() * way).real.sum())
    assert abs((up - down) / 2e-3 / expected - 1) < 1e-3


def differences(n: int) -> Tensor:
    """Of neighbours, those around the edge being zero: `[n + 1, n]`."""
    return torch.eye(n + 1, n, dtype=torch.float64) - torch.eye(n + 1, n, dtype=torch.float64).roll(1, 0)


@pytest.mark.parametrize("order", [1, 3])
def test_the_proximal_map_solves_the_dense_system(order):
    ny, nx = 6, 8
    penalty = Smoothness((ny, nx), 2.0, order=order, margin=0.25)
    tall, wide = ny + 2 * 2, nx + 2 * 2
    rows, columns = (m.T @ m for m in (differences(tall), differences(wide)))
    laplacian = (ny / torch.pi) ** 2 * torch.kron(rows, torch.eye(wide).double())
    laplacian = laplacian + (nx / torch.pi) ** 2 * torch.kron(torch.eye(tall).double(), columns)
    matrix = 2.0 / (ny * nx) * torch.linalg.matrix_power(laplacian, order)
    maps = noise(2, tall, wide)
    system = torch.eye(tall * wide).double() + 0.3 * matrix
    truth = torch.linalg.solve(system.to(maps.dtype), maps.flatten(1).T).T.view(maps.shape)
    assert relative(penalty.proximal(maps, 0.3) - truth, truth) < 1e-10
    energy = torch.einsum("cp,pq,cq->c", maps.flatten(1).conj(), matrix.to(maps.dtype), maps.flatten(1)).real / 2
    torch.testing.assert_close(penalty.energy(maps), energy)


def test_slow_modes_are_the_first_ones_of_the_transform():
    penalty = Smoothness((6, 8), 1.0, margin=0.25)
    precision = float(penalty.precisions[3, 0]) * 1.001
    slow = penalty.slow(precision)
    counts = slow.precisions.shape
    assert counts[0] == 4
    assert float(penalty.precisions[0, counts[1] - 1]) < precision <= float(penalty.precisions[0, counts[1]])
    modes = noise(2, *counts)
    every = torch.zeros(2, *penalty.precisions.shape, dtype=modes.dtype)
    every[:, : counts[0], : counts[1]] = modes
    torch.testing.assert_close(slow.wide(modes), penalty.transform(every))
    torch.testing.assert_close(slow.maps(modes), penalty.cropped(penalty.transform(every)))
    maps = noise(2, 6, 8, seed=1)
    left, right = (maps.conj() * slow.maps(modes)).sum(), (slow.adjoint(maps).conj() * modes).sum()
    torch.testing.assert_close(left, right)
    assert penalty.slow(0.0).precisions.shape == (1, 1)


def test_maps_of_slow_modes_are_those_of_all(radial, monkeypatch):
    problem, *_ = radial
    image, penalty = smooth_head(N)[None].to(problem.data.dtype), Smoothness((N, N), 10.0)
    slow = CoilFit(problem, penalty)
    monkeypatch.setattr(coil_fit, "_BEYOND", math.inf)
    every = CoilFit(problem, penalty)
    assert slow.first(image).shape[-1] < every.first(image).shape[-1]
    few, all_of_them = (fit.maps(fit(image, fit.first(image), 100)) for fit in (slow, every))
    assert relative(few - all_of_them, all_of_them) < 0.01


def test_padding_is_the_adjoint_of_cropping():
    penalty = Smoothness((6, 8), 1.0)
    maps, wide = noise(6, 8), penalty.padded(noise(6, 8, seed=1)) + 1
    left, right = (
        torch.vdot(maps.flatten(), penalty.cropped(wide).flatten()),
        (penalty.padded(maps).conj() * wide).sum(),
    )
    torch.testing.assert_close(left, right)


def test_a_proximal_step_never_raises_misfit_and_penalty(radial):
    problem, *_ = radial
    penalty = Smoothness((N, N), 1.0)
    image = smooth_head(N)[None]
    wide = penalty.padded(noise(1, COILS, N, N, seed=3))

    def objective(wide: Tensor) -> float:
        return float(problem.misfit(image, penalty.cropped(wide)) + penalty.energy(wide).sum())

    values = [objective(wide)]
    for _ in range(5):
        wide = problem.proximal_step(penalty, image, wide)
        values.append(objective(wide))
    assert all(after < before for before, after in pairwise(values))


def test_fixing_the_factor_keeps_the_coil_images(radial):
    problem, *_ = radial
    image, maps = noise(N, N), noise(COILS, N, N, seed=1)
    fixed, unit_maps = problem.fixed(image, maps)
    torch.testing.assert_close(unit_maps * fixed, maps * image)
    torch.testing.assert_close(unit_maps.abs().square().sum(0), torch.ones(N, N).double())
    aligned = (unit_maps * problem.first_maps.conj()).sum(0)
    assert float(aligned.imag.abs().max()) < 1e-12
    assert float(aligned.real.min()) >= 0


def test_first_maps_of_smooth_coils_are_near_them():
    """Every coil image is smooth where one soft head fills the image."""
    n = 32
    trajectory = radial_trajectory(n, 24, 32).double()
    maps, head = ring_of_coils(n, 4), smooth_head(n)
    kspace = direct_sum(maps * head, trajectory)
    found = JointProblem.of(Encoding(sampling_operator(trajectory, (n, n))), kspace).first_maps
    images = maps * head
    assert relative(images - found * (found.conj() * images).sum(0), images) < 0.15


def test_given_maps_leave_the_linear_problem_of_the_same_scale():
    trajectory = radial_trajectory(N, 7, 16).double()
    maps, head = ring_of_coils(N, COILS), smooth_head(N)
    kspace = 50 * direct_sum(maps * head, trajectory)
    problem = JointProblem.of(Encoding(sampling_operator(trajectory, (N, N))), kspace, first_maps=2 * maps)
    torch.testing.assert_close(problem.first_maps, maps)
    scaled = problem.scaled_for(Convention("maximum", 0.01, 1.0))
    assert abs(float(scaled.unit) / (50 * float(head.abs().max())) - 1) < 0.2
    given = scaled.given(maps)
    truth = 50 * head / scaled.unit
    assert relative(given.normal(truth) - given.adjoint, given.adjoint) < 1e-4
    assert relative(scaled.noise_level - given.noise_level, given.noise_level) < 1e-12


def test_bad_data_are_named():
    encoding = Encoding(sampling_operator(radial_trajectory(N, 7, 16), (N, N)))
    kspace = complex_noise(COILS, 7, 16)
    broken = kspace.clone()
    broken[0, 0, :3] = torch.nan
    with pytest.raises(ValueError, match="3 of 336 samples of k-space are not finite"):
        JointProblem.of(encoding, broken)
    with pytest.raises(ValueError, match=r"expected first maps \[3, 12, 12\], got \[2, 12, 12\]"):
        JointProblem.of(encoding, kspace, first_maps=torch.ones(2, N, N, dtype=kspace.dtype))
    with pytest.raises(ValueError, match="2 of 432 values of the first maps are not finite"):
        maps = torch.ones(COILS, N, N, dtype=kspace.dtype)
        maps[1, 2, :2] = torch.nan
        JointProblem.of(encoding, kspace, first_maps=maps)
    with pytest.raises(ValueError, match="cannot be scaled"):
        JointProblem.of(encoding, 0 * kspace).scaled_for(Convention("maximum", 0.01, 1.0))
    for settings in ({"weight": 0.0}, {"weight": 1.0, "order": 0}, {"weight": 1.0, "margin": -0.1}):
        with pytest.raises(ValueError, match="expected a weight above 0"):
            Smoothness((N, N), **settings)


def test_no_signal_has_no_direction():
    assert not normalised(torch.zeros(3, 4, 4, dtype=torch.complex64)).isnan().any()
