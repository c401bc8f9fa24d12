"""Joint steps and draws against the dense real system that they stand for, made from the signal by its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor

from recon_core.coil_errors import CoilErrors
from recon_core.field_basis import FieldBasis, polynomial_basis
from recon_core.fourier import fft_centred, ifft_centred
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.simulation import exact_signal
from recon_core.solvers import blind_linearised
from recon_core.solvers.blind_linearised import Change, Linearised
from recon_core.solvers.blind_problem import BlindProblem, Whereabouts
from recon_core.solvers.conjugate_gradient import conjugate_gradient

from analytic import DirectSampling, complex_noise, relative, ring_of_coils, smooth_head, spiral_trajectory

N, COILS, UNIT, PULL = 8, 3, 6.0, 4.0
TRAJECTORY = spiral_trajectory(N, 2, 50).double()
TIMES = torch.linspace(-0.002, 0.01, 50).double()
MAPS, IMAGE = ring_of_coils(N, COILS), smooth_head(N)
THETA = torch.tensor([12.0, -8, 5, 3, 0, 4]).double()
CENTRE = IMAGE + 0.1 * complex_noise(N, N, seed=1, dtype=torch.complex128)


@dataclass(frozen=True)
class Case:
    """A problem, a point, (Re, Im) of what the samples miss there, and the real matrix of what the unknowns add to it.

    These are Re dx, Im dx, dtheta, Re dq and Im dq.
    """

    problem: BlindProblem
    image: Tensor
    at: Whereabouts
    residual: Tensor
    jacobian: Tensor

    @property
    def pixels(self) -> int:
        return self.image.numel()

    def near(self, pull: float = PULL) -> Linearised:
        return Linearised(self.problem, self.image, self.at, pull)

    def near_field(self, field: Tensor) -> Linearised:
        return Linearised(self.problem, self.image, self.at._replace(field=field), PULL)


def signal(image: Tensor, maps: Tensor, field_hz: Tensor, trajectory: Tensor, times: Tensor) -> Tensor:
    return UNIT * exact_signal(image, maps, field_hz, trajectory, times)


def parts(samples: Tensor) -> Tensor:
    """Real and imaginary parts in one column for each of `[column, coil, shot, sample]`."""
    return torch.view_as_real(samples).flatten(1).T


def case_of(
    kspace: Tensor,
    trajectory: Tensor,
    times: Tensor,
    image: Tensor,
    at: Whereabouts,
    basis: FieldBasis,
    errors: CoilErrors,
    limit_hz: float = 80.0,
) -> Case:
    """The unit is no longer one."""
    functions = LowRank(times.expand(trajectory.shape[1:]), -limit_hz, limit_hz, 1e-5)
    encoding = Encoding(DirectSampling(trajectory, image.shape), functions)
    coil_maps = ring_of_coils(len(image), len(kspace))
    problem = BlindProblem.of(encoding, coil_maps, kspace, times.expand(trajectory.shape[1:]), basis, errors)
    maps, field_hz = problem.maps(at.coils), basis.field(at.field).clamp(-limit_hz, limit_hz)
    moved = image * (basis.field(at.field).abs() < limit_hz)

    def added(image: Tensor, maps: Tensor) -> Tensor:
        return signal(image, maps, field_hz, trajectory, times)

    pixels = torch.eye(image.numel(), dtype=torch.complex128).view(-1, *image.shape)
    of_image = [added(pixel, maps) for pixel in pixels]
    of_field = [-2j * torch.pi * times * added(f * moved, maps) for f in basis.functions]
    coefficients = torch.eye(at.coils.numel()).view(at.coils.numel(), *at.coils.shape).to(at.coils)
    of_coils = [added(image, problem.coil_errors.maps(q)) for q in coefficients]
    columns = [*of_image, *(1j * s for s in of_image), *of_field, *of_coils, *(1j * s for s in of_coils)]
    problem = replace(problem, unit=torch.tensor(UNIT).double())
    return Case(problem, image, at, parts((kspace - added(image, maps))[None])[:, 0], parts(torch.stack(columns)))


def polynomials(n: int) -> FieldBasis:
    """Six, in double precision."""
    some = polynomial_basis(torch.ones(n, n, dtype=torch.bool), 2)
    return FieldBasis(some.functions.double(), some.deviation_hz.double(), some.mask)


def some_errors() -> CoilErrors:
    smooth = CoilErrors.smooth((N, N), (40.0, 40.0))
    return CoilErrors(smooth.functions[:4].double(), smooth.deviation[:4].double())


@pytest.fixture(autouse=True)
def model_is_right(monkeypatch) -> None:
    """Of the data all is believed, but in tests of caution."""
    monkeypatch.setattr(blind_linearised, "_ALIKE", 0.0)
    monkeypatch.setattr(blind_linearised, "_LEAST_CAUTION", 1.0)


@pytest.fixture(scope="module", params=["maps known", "maps sought", "field out of range"])
def case(request) -> Case:
    """Of the field half is known to 5 Hz, and the rest not at all."""
    basis = replace(polynomials(N), deviation_hz=torch.tensor([math.inf, math.inf, math.inf, 5.0, 5.0, 5.0]).double())
    errors = some_errors() if request.param == "maps sought" else CoilErrors.none((N, N))
    at, true = (0.03 * complex_noise(COILS, len(errors.deviation), seed=s, dtype=torch.complex128) for s in (2, 3))
    field_hz = basis.field(THETA + torch.tensor([6.0, 4, -3, 2, 5, -2]).double())
    kspace = signal(1.1 * IMAGE, MAPS + errors.maps(true), field_hz, TRAJECTORY, TIMES)
    kspace = kspace + complex_noise(*kspace.shape, dtype=torch.complex128)
    return case_of(
        kspace,
        TRAJECTORY,
        TIMES,
        IMAGE,
        Whereabouts(THETA, at),
        basis,
        errors,
        15.0 if request.param == "field out of range" else 80.0,
    )


@pytest.fixture
def exact(monkeypatch) -> None:
    """Conjugate gradients that go all the way."""
    monkeypatch.setattr(blind_linearised, "_TOLERANCE", 1e-12)


def weights(case: Case, pull: float) -> Tensor:
    """Square roots of the quadratic terms of all unknowns."""
    channels = torch.full((2 * case.pixels,), math.sqrt(pull)).double()
    of_coils = case.problem.coil_errors.deviation.double().reciprocal().repeat(2 * len(case.at.coils))
    return torch.cat([channels, case.problem.basis.precision.div(2).sqrt(), of_coils])


def flat(change: Change) -> Tensor:
    """All unknowns in the order of the matrix."""
    image, field, coils = change
    return torch.cat([image.real.flatten(), image.imag.flatten(), field, coils.real.flatten(), coils.imag.flatten()])


def dense(case: Case, pull: float, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and right-hand side of the normal equations for a step."""
    offset = flat(Change(centre - case.image, -case.at.field, -case.at.coils))
    diagonal = weights(case, pull)
    stacked = torch.cat([case.jacobian, torch.diag(diagonal)])
    target = torch.cat([case.residual, diagonal * offset])
    return stacked.T @ stacked, stacked.T @ target


def field_of(case: Case, unknowns: Tensor) -> Tensor:
    """dtheta of them."""
    return unknowns[2 * case.pixels :][: len(case.at.field)]


def test_the_misfit_is_that_of_the_samples(case):
    true = float(case.residual.square().sum())
    assert float(case.near().misfit) == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("pull", [PULL, 300.0])
def test_a_step_leads_to_the_minimum_of_the_dense_problem(case, exact, pull):
    found = flat(case.near(pull).step(CENTRE, 400))
    truth = torch.linalg.solve(*dense(case, pull, CENTRE))
    sizes = 2 * case.pixels, len(THETA), 2 * case.at.coils.numel()
    for some, true in zip(found.split(sizes), truth.split(sizes), strict=True):
        assert float((some - true).norm()) <= 1e-4 * float(true.norm())


def test_a_centre_that_follows_pulls_less_along_what_it_follows(case, exact):
    """The matrix then holds what is left of a change, the right-hand side the whole way to the centre."""
    left = torch.linspace(0.1, 1, case.pixels, dtype=torch.float64)
    matrix, side = dense(case, PULL, CENTRE)
    matrix -= PULL * torch.block_diag(torch.diag(1 - left.repeat(2)), torch.zeros(2 * [len(matrix) - 2 * case.pixels]))
    near = Linearised(case.problem, case.image, case.at, PULL, lambda change: left.view(change.shape) * change)
    found, truth = flat(near.step(CENTRE, 400)), torch.linalg.solve(matrix, side)
    assert relative(found - truth, truth) < 1e-4
    assert relative(flat(case.near().step(CENTRE, 400)) - truth, truth) > 1e-2


@pytest.mark.parametrize("pull", [0.1, PULL, 300.0, 1e5])
def test_noise_leaves_the_misfit_that_it_has_in_the_dense_problem(case, pull):
    """Of unit variance per sample, tr (1 - H)^2, where the image alone follows by H."""
    found = case.problem.samples - case.near(pull).misfit_of_noise
    assert found == pytest.approx(followed_noise(case.jacobian[:, : 2 * case.pixels], pull), rel=0.1)


@pytest.mark.parametrize("pull", [PULL, 300.0])
def test_where_no_coil_sees_the_image_it_follows_no_noise(case, pull):
    unseen = torch.zeros(N, N, dtype=torch.bool)
    unseen[:, : N // 4] = True
    coil_maps = torch.where(unseen, -case.problem.coil_errors.maps(case.at.coils), case.problem.coil_maps)
    near = Linearised(replace(case.problem, coil_maps=coil_maps), case.image, case.at, pull)
    of_image = case.jacobian[:, : 2 * case.pixels] * ~unseen.flatten().repeat(2)
    assert case.problem.samples - near.misfit_of_noise == pytest.approx(followed_noise(of_image, pull), rel=0.1)


def followed_noise(of_image: Tensor, pull: float) -> float:
    """n - tr (1 - H)^2 for the columns of n pixels, real and imaginary."""
    gram, one = of_image.T @ of_image, torch.eye(of_image.shape[1]).double()
    open_ = one - torch.linalg.solve(gram + pull * one, gram)
    return (len(one) - float(open_.square().sum())) / 2


def test_what_is_known_of_the_field_counts_more_by_what_noise_does_not_explain(case, exact, monkeypatch):
    """By eight times as much of it as there is for each pixel."""
    monkeypatch.setattr(blind_linearised, "_ALIKE", 8.0)
    near = case.near()
    beyond = float(case.residual.square().sum()) - near.misfit_of_noise
    assert near.caution == pytest.approx(1 + 8 * beyond / case.pixels, rel=1e-3)
    basis = case.problem.basis
    deviation_hz = basis.deviation_hz / math.sqrt(near.caution)
    known = replace(case, problem=replace(case.problem, basis=replace(basis, deviation_hz=deviation_hz)))
    truth, plain = (field_of(case, torch.linalg.solve(*dense(some, PULL, IMAGE))) for some in (known, case))
    found = near.step(IMAGE, 400).field
    assert relative(found - truth, truth) < 1e-4
    assert relative(plain - truth, truth) > 1e-2


def test_data_that_the_model_explains_are_believed_most(case, monkeypatch):
    """They hold the signal of the point, and no noise."""
    monkeypatch.setattr(blind_linearised, "_ALIKE", 8.0)
    monkeypatch.setattr(blind_linearised, "_LEAST_CAUTION", 3.0)
    model = case.problem.uncombined.with_field(case.problem.field(case.at.field))
    seen = case.problem.maps(case.at.coils)[:, None] * model.expand(UNIT * case.image)
    data_images = model.gram(seen)
    problem = replace(case.problem, data_images=data_images, energy=(seen.conj() * data_images).sum().real)
    near = Linearised(problem, case.image, case.at, PULL)
    assert abs(float(near.misfit)) < 1e-6
    assert near.caution == 3


def some_change(case: Case, seed: int) -> Change:
    """Noise in all unknowns."""
    noise = complex_noise(N, N, seed=seed, dtype=torch.complex128)
    coils = complex_noise(*case.at.coils.shape, seed=seed + 1, dtype=torch.complex128)
    return Change(noise, 30 * torch.randn(6, generator=Generator().manual_seed(seed)).double(), coils)


def test_gradients_are_taken_back_by_the_transpose_of_what_the_image_follows(case):
    near, change, gradient = case.near(), some_change(case, 0), some_change(case, 5)
    forth, back = near._followed(change), near._following(gradient)
    assert float(flat(forth) @ flat(gradient)) == pytest.approx(float(flat(change) @ flat(back)), rel=1e-10)
    assert relative(forth.image - change.image, change.image) > 0.1


def test_gradients_are_those_along_the_terms_that_a_change_adds(case):
    near, change = case.near(), some_change(case, 0)
    terms = near._terms(change)
    some = complex_noise(*terms.shape, seed=7, dtype=terms.dtype)
    back = near._transposed(some)
    assert float((some.conj() * terms).sum().real) == pytest.approx(float(flat(change) @ flat(back)), rel=1e-10)
    for zero in range(3):
        alone = Change(*(part if i == zero else 0 * part for i, part in enumerate(change)))
        forth = float((some.conj() * near._terms(alone)).sum().real)
        assert forth == pytest.approx(float(flat(alone) @ flat(back)), rel=1e-10)


def test_unknowns_of_equal_curvature_are_unpacked_by_the_transpose_of_packing(case):
    near, change = case.near(), some_change(case, 0)
    vector = torch.randn(len(flat(change)), generator=Generator().manual_seed(9)).double()
    forth, back = near._packed(change) @ vector, flat(change) @ flat(near._unpacked(vector))
    assert float(forth) == pytest.approx(float(back), rel=1e-10)


@pytest.mark.parametrize(("sought", "iterations"), [(False, 10), (True, 15)], ids=["maps known", "maps sought"])
def test_few_iterations_lead_further_than_with_unknowns_of_equal_curvature(sought, iterations):
    """Eight coils see a smooth field, and none is known: all but what is the field's own, the image can do as well.

    The maps, where they are sought, are seen above all in the centre of k-space, which is densely sampled.
    """
    n, coils, shots, samples, pull = 20, 8, 4, 150, 2.0
    trajectory, times = (
        spiral_trajectory(n, shots, samples, power=1.5).double(),
        torch.linspace(0, 0.012, samples).double(),
    )
    basis, errors = polynomials(n), CoilErrors.none((n, n))
    if sought:
        smooth = CoilErrors.smooth((n, n), (60.0, 60.0))
        errors = CoilErrors(smooth.functions.double(), smooth.deviation.double())
    image, maps = smooth_head(n), ring_of_coils(n, coils)
    field_hz = basis.field(torch.tensor([4.0, 8, -7, 5, 6, -5]).double())
    off = 0.02 * complex_noise(coils, len(errors.deviation), seed=2, dtype=torch.complex128)
    kspace = signal(image, maps + errors.maps(off), field_hz, trajectory, times)
    at = Whereabouts(torch.zeros(6).double(), torch.zeros_like(off))
    case = case_of(kspace, trajectory, times, image, at, basis, errors)
    system, rhs = dense(case, pull, image)
    scale = system.diagonal().rsqrt()

    def scaled(x: Tensor) -> Tensor:
        return scale * (system @ (scale * x))

    plain = scale * conjugate_gradient(scaled, scale * rhs, iterations=iterations, tolerance=0).image
    found = case.near(pull).step(image, iterations).field
    truth, plain = (field_of(case, x) for x in (torch.linalg.solve(system, rhs), plain))
    assert relative(found - truth, truth) < 0.1
    assert relative(plain - truth, truth) > 0.5


def test_coil_maps_spread_the_density_as_they_do_in_the_diagonal_of_the_model(case):
    """That of `F A^H A F^H`, if `F E^H E F^H` were diagonal: each map as a matrix from k-space to k-space."""
    each_point = torch.eye(N * N, dtype=torch.complex128).view(-1, N, N)
    maps = case.problem.maps(case.at.coils)
    seen = fft_centred(maps[:, None] * ifft_centred(each_point, (-2, -1)), (-2, -1))
    truth = (seen.abs().square() * case.problem.density).sum((0, -2, -1)).view(N, N)
    found = case.near()._density_through_the_coils()
    assert relative(found - truth, truth) < 1e-6
    assert relative(case.problem.density - truth, truth) > 0.1


@pytest.mark.slow
def test_draws_have_the_covariance_of_the_dense_posterior(case, exact):
    """Of `exp(-|J d|^2 - pull |x|^2 - |theta|_P^2 / 2 - |q|_Q^2)`, image included."""
    count, generator, near = 250, Generator().manual_seed(0), case.near()
    drawn = torch.stack([flat(near.draw(generator, 40))[2 * case.pixels :] for _ in range(count)])
    stacked = torch.cat([case.jacobian, torch.diag(weights(case, PULL))])
    covariance = torch.linalg.inv(2 * stacked.T @ stacked)[2 * case.pixels :, 2 * case.pixels :]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), drawn.T, upper=False)
    identity = torch.eye(len(white)).double()
    # Entries of the sample covariance have the variance 1 / count, those of its diagonal two.
    assert float((white @ white.T / count - identity).abs().max()) < 4.5 * math.sqrt(2 / count)
    assert abs(float(white.square().mean()) - 1) < 4 * math.sqrt(2 / white.numel())
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(count)


def test_draws_are_wider_where_the_image_is_open(case):
    def spread(pull: float) -> float:
        near, generator = case.near(pull), Generator().manual_seed(0)
        return sum(float(near.draw(generator, 30).field.square().sum()) for _ in range(8))

    assert spread(PULL) > 2 * spread(1e4)


def test_a_field_that_is_out_of_range_everywhere_stays_where_it_is(case):
    """But for what is known of its functions."""
    step = case.near_field(torch.tensor([1000.0, 0, 0, 0, 0, 0]).double()).step(IMAGE, 30)
    assert float(step.field.abs().max()) < 1e-6
    assert bool(step.image.abs().max() > 0.01)


def test_functions_of_which_nothing_is_seen_stay_where_they_are(case):
    """The image is dark in one corner, where a function of its own lies, and nothing is known of it."""
    basis = case.problem.basis
    corner = torch.zeros(1, N, N).double()
    corner[0, 0, 0] = 1
    wider = FieldBasis(
        torch.cat([basis.functions, corner]), torch.cat([basis.deviation_hz, torch.tensor([math.inf])]), basis.mask
    )
    dark = IMAGE.clone()
    dark[0, 0] = 0
    at = case.at._replace(field=torch.cat([THETA, torch.ones(1)]))
    step = Linearised(replace(case.problem, basis=wider), dark, at, PULL).step(dark, 30).field
    assert abs(float(step[-1])) < 1e-9
    assert float(step[:-1].abs().min()) > 1e-2
