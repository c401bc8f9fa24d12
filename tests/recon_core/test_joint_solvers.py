"""Joint estimation against closed forms for known maps, and against the truth of a small scan for unknown ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon_core.operators.encoding import Encoding
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.library import load_prior
from recon_core.priors.prior import Convention
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.joint_diffusion import PRODUCT_WEIGHT, joint_diffusion, local_weight
from recon_core.solvers.joint_langevin import joint_langevin, map_estimate
from recon_core.solvers.joint_problem import JointEstimate, JointProblem
from recon_core.solvers.joint_total_variation import joint_total_variation
from recon_core.solvers.run import Run

from analytic import complex_noise, direct_sum, grid_trajectory, relative, ring_of_coils, smooth_head
from gaussian_chain import relative_to
from gaussian_problem import CONVENTION, Gaussian, N, Scan, prior_of, scan, smooth, white

MEAN = complex_noise(N, N, seed=9, dtype=torch.complex128)
PRIOR = Gaussian(smooth(), MEAN)
SOLVERS = {"diffusion": joint_diffusion, "langevin": joint_langevin}


def seeded(seed: int = 0, **settings) -> Run:
    return Run(torch.Generator().manual_seed(seed), **settings)


def known(given: Scan) -> JointProblem:
    """With the true maps to begin with."""
    model = given.problem.model
    maps = model.coil_maps
    kspace = given.kspace.view(len(maps), *model.encoding.sampling.trajectory.shape[1:])
    return replace(JointProblem.of(model.encoding, kspace, first_maps=maps), unit=given.problem.unit)


@pytest.mark.parametrize(
    ("solve", "settings", "samples"),
    [
        (joint_diffusion, {"steps": 60, "highest": 3.0, "lowest": 0.01, "iterations": 20, "coil_iterations": 0}, 60),
        (joint_langevin, {"steps": 300, "highest": 3.0, "coil_steps": 0}, 40),
    ],
)
def test_with_known_maps_the_mean_is_that_of_the_posterior(solve, settings, samples):
    given = scan(PRIOR.draw())
    found = solve(known(given), prior_of(PRIOR), seeded(samples=samples), **settings)
    assert relative_to(given.posterior(PRIOR), found) < 0.25
    assert relative(found.coil_maps - given.problem.model.coil_maps, found.coil_maps) < 1e-12


@pytest.mark.parametrize(("samples", "momentum"), [(1, None), (4, None), (3, 0.3)])
def test_with_known_maps_that_rest_it_is_decomposed_diffusion(samples, momentum):
    """Pairs, momentum and phases included."""
    given, prior = scan(PRIOR.draw()), prior_of(PRIOR, replace(CONVENTION, any_phase=True))
    settings = {"steps": 6, "highest": 1.0, "lowest": 0.05, "iterations": 5, "momentum": momentum}
    joint = joint_diffusion(known(given), prior, seeded(samples=samples), coil_iterations=0, **settings)
    plain = decomposed_diffusion(given.problem, prior, seeded(samples=samples), **settings)
    assert relative(joint.image - plain.image, plain.image) < 1e-6
    assert (joint.deviation is None) == (samples == 1)
    if samples > 1:
        assert relative(joint.deviation - plain.deviation, plain.deviation) < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_posterior_is_that_of_the_prior_to_the_power_of_its_weight(momentum):
    """Of a Gaussian: with its variances divided by the weight."""
    given, samples = scan(PRIOR.draw()), 60
    settings = {"steps": 120, "highest": 3.0, "lowest": 0.02, "iterations": 20, "coil_iterations": 0}
    found = joint_diffusion(
        known(given), prior_of(PRIOR), seeded(samples=samples), weight=0.5, momentum=momentum, **settings
    )
    truth = given.posterior(Gaussian(smooth() / 0.5, MEAN))
    assert relative_to(truth, found) < 0.25
    assert abs(float((found.deviation / truth.deviation).square().mean()) - 1) < 0.2


def test_a_low_weight_leaves_empty_images_to_the_whole_prior():
    """Of images a sixth as strong as the noise of a full scan."""
    faint = Gaussian(white(0.015))
    given, prior = scan(faint.draw()), prior_of(faint, Convention("percentile99", 0.001, 160.0))
    settings = {"steps": 120, "highest": 0.1, "lowest": 0.004, "iterations": 20, "coil_iterations": 0}
    found = joint_diffusion(known(given), prior, seeded(samples=60), weight=0.1, **settings)
    truth = given.posterior(faint)
    assert relative_to(truth, found) < 0.25
    assert abs(float((found.deviation / truth.deviation).square().mean()) - 1) < 0.2


def test_the_local_weight_tells_what_is_empty_by_the_noise():
    image, noise = torch.zeros(2, 32, 32, dtype=torch.complex64), torch.full((1, 1), 0.02)
    image[1, :, :16] = 1j
    empty, half = local_weight(0.2, image, noise)
    torch.testing.assert_close(empty, torch.ones(32, 32))
    torch.testing.assert_close(half[:, :16], torch.full((32, 16), 0.2))
    torch.testing.assert_close(half[:, 20:], torch.ones(32, 12))
    for limit, level in ((2 * math.sqrt(2) * noise, noise), (torch.full((1, 1), 0.1), 10 * noise)):
        at_limit = limit.expand(8, 8).to(image)
        torch.testing.assert_close(local_weight(0.2, at_limit, level), torch.full((8, 8), 0.2 + 0.8 * math.exp(-1)))


def test_each_slice_has_the_local_weight_of_its_own_noise():
    image, noise = 0.02 * complex_noise(2, 3, 8, 8, seed=1), torch.tensor([0.001, 0.02, 0.05]).view(3, 1, 1)
    together = local_weight(0.2, image, noise)
    alone = [[local_weight(0.2, image[i, j], noise[j]) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(together, torch.stack([torch.stack(row) for row in alone]))
    assert float(together[:, 0].max()) < 0.3 < 0.6 < float(together[:, 2].min())


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_no_weight_falls_where_the_image_is_empty(weight):
    nothing = torch.zeros(8, 8, dtype=torch.complex64)
    assert torch.equal(local_weight(weight, nothing, torch.tensor([[0.1]])), torch.full((8, 8), weight))


def test_products_of_experts_count_less(undersampled):
    product, network = load_prior("head_pogmdm"), HEADS
    for prior, weight in ((product, PRODUCT_WEIGHT), (network, 1.0)):
        by_default, told = (
            joint_diffusion(undersampled, prior, seeded(), steps=2, **settings) for settings in ({}, {"weight": weight})
        )
        assert torch.equal(by_default.image, told.image)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_most_likely_image_is_that_of_the_closed_form(weight):
    given = scan(PRIOR.draw())
    problem = known(given)
    nothing = JointEstimate(torch.zeros_like(MEAN), None, 0, 0, problem.first_maps)
    found = map_estimate(problem, prior_of(PRIOR), nothing, seeded(), steps=600, level=0.1, weight=weight)
    truth = given.posterior(Gaussian((smooth() + 0.1**2) / weight, MEAN)).mean
    assert relative(found.image - truth, truth) < 1e-3


def test_the_most_likely_image_has_a_weight_in_each_pixel():
    """Of white images, whose density is a product over pixels."""
    given, white_prior = scan(PRIOR.draw()), Gaussian(white(), MEAN)
    problem = known(given)
    weight = torch.linspace(0.2, 1, N * N, dtype=torch.float64).view(N, N)
    nothing = JointEstimate(torch.zeros_like(MEAN), None, 0, 0, problem.first_maps)
    found = map_estimate(problem, prior_of(white_prior), nothing, seeded(), steps=600, level=0.1, weight=weight)
    precision = (weight / (2 * (white() + 0.1**2))).flatten().to(given.precision)
    rhs = given.matrix.mH @ given.kspace + precision * MEAN.flatten()
    truth = torch.linalg.solve(given.precision + torch.diag(precision), rhs).view(N, N)
    assert relative(found.image - truth, truth) < 1e-3


HEAD, COILS, SIZE = 40 * smooth_head(32), 4, 32


@pytest.fixture(scope="module")
def undersampled() -> JointProblem:
    """Every other line and 4 at the centre, with noise; each of the first maps has a third of its neighbour in it."""
    lines = sorted({*range(0, SIZE, 2), *range(SIZE // 2 - 2, SIZE // 2 + 2)})
    trajectory = grid_trajectory((SIZE, SIZE))[:, lines]
    kspace = direct_sum(ring_of_coils(SIZE, COILS) * HEAD, trajectory)
    kspace = kspace + complex_noise(*kspace.shape, seed=1, dtype=torch.complex128)
    true = ring_of_coils(SIZE, COILS).to(torch.complex64)
    wrong = true + true.roll(1, 0) / 3
    problem = JointProblem.of(
        Encoding(sampling_operator(trajectory, (SIZE, SIZE))), kspace.to(torch.complex64), first_maps=wrong
    )
    return replace(problem, unit=torch.tensor(40.0))


def null_space_residual(maps: Tensor) -> float:
    """What the maps miss of the true coil images."""
    images = ring_of_coils(SIZE, COILS) * HEAD
    return relative(images - maps * (maps.conj() * images).sum(0), images)


HEADS = load_prior("head_unet")


def solved(name: str, problem: JointProblem, run: Run) -> JointEstimate:
    if name == "total variation":
        return joint_total_variation(problem, run)
    return SOLVERS[name](problem, HEADS, run, steps=12 if name == "diffusion" else 40)


@pytest.mark.parametrize("name", [*SOLVERS, "total variation"])
def test_maps_and_image_come_nearer_to_the_truth(undersampled, name):
    found = solved(name, undersampled, seeded())
    before, after = (null_space_residual(maps) for maps in (undersampled.first_maps, found.coil_maps))
    assert after < 0.5 * before
    given = undersampled.given(undersampled.first_maps)
    start = given.tempered(torch.zeros_like(given.adjoint), 0.3, None, 30)
    truth = (HEAD.abs() / 40).float()
    errors = [relative(image.abs() - truth, truth) for image in (start, found.image)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", SOLVERS)
def test_same_seed_same_estimate(undersampled, name):
    first, again, other = (solved(name, undersampled, seeded(seed, samples=2)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.coil_maps, again.coil_maps)
    assert torch.equal(first.deviation, again.deviation)
    assert relative(other.image - first.image, first.image) > 1e-4


@pytest.mark.parametrize("name", [*SOLVERS, "total variation"])
def test_stops_when_told(undersampled, name):
    asked = []

    def go_on(done: int, planned: int) -> bool:
        asked.append(done)
        return done < 3

    found = solved(name, undersampled, seeded(go_on=go_on))
    assert asked == [0, 1, 2, 3]
    assert found.steps == 3 < found.planned
    assert torch.isfinite(found.image.abs()).all()


def test_map_estimate_stops_when_told(undersampled):
    start = solved("diffusion", undersampled, seeded(go_on=lambda done, planned: False))
    found = map_estimate(undersampled, HEADS, start, seeded(go_on=lambda done, planned: done < 2))
    assert (found.steps, found.planned, found.deviation) == (2, 250, None)


def test_slices_know_nothing_of_one_another(undersampled):
    """Total variation draws nothing; the other slice is twice as bright, and maps have the modes that it needs."""
    two = JointProblem(
        undersampled.single,
        *(torch.stack([x, factor * x]) for x, factor in ((undersampled.data, 2), (undersampled.energy, 4))),
        torch.tensor([40.0, 80.0]),
        undersampled.first_maps.expand(2, -1, -1, -1),
    )
    alone, together = (joint_total_variation(problem, seeded(), iterations=10) for problem in (undersampled, two))
    assert relative(together.image[0] - alone.image, alone.image) < 1e-4
    assert relative(together.coil_maps[0] - alone.coil_maps, alone.coil_maps) < 2e-3
    both = joint_diffusion(two, HEADS, seeded(), steps=3)
    assert both.image.shape == (2, SIZE, SIZE)
    assert both.coil_maps.shape == (2, COILS, SIZE, SIZE)


def test_bad_settings_are_named(undersampled):
    with pytest.raises(ValueError, match="expected noise levels that fall"):
        joint_diffusion(undersampled, HEADS, seeded(), highest=0.01, lowest=0.1)
    with pytest.raises(ValueError, match="expected a weight of the prior above 0"):
        joint_diffusion(undersampled, HEADS, seeded(), weight=0.0)
    with pytest.raises(ValueError, match="expected a momentum from zero to below one, got 1"):
        joint_diffusion(undersampled, HEADS, seeded(), momentum=1.0)
    with pytest.raises(ValueError, match="weight of the smoothness|weight above 0"):
        joint_langevin(undersampled, HEADS, seeded(), smoothness=-1.0)
    with pytest.raises(ValueError, match="expected a weight of at least 0"):
        joint_total_variation(undersampled, seeded(), weight=-1.0)
