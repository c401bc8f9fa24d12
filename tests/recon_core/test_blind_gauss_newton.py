"""A small spiral scan of a head in a field that nobody tells, with the truth to compare with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon_core.coil_errors import CoilErrors
from recon_core.field_basis import polynomial_basis, smooth_basis
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.library import load_prior
from recon_core.simulation import exact_signal, head
from recon_core.solvers.blind_gauss_newton import (
    _IMAGE_LEVEL,
    _IMAGE_STEPS,
    Stage,
    alone,
    blind_gauss_newton,
    coarse,
    fine,
)
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem, Whereabouts
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.prior_curvature import not_followed
from recon_core.solvers.run import Estimate, Run

from analytic import complex_noise, positions, relative, ring_of_coils, spiral_trajectory

N, COILS, SHOTS, SAMPLES = 32, 4, 4, 500
TRAJECTORY = spiral_trajectory(N, SHOTS, SAMPLES, power=1.5)
TIMES = torch.linspace(0, 0.012, SAMPLES)
PRIOR = load_prior("head_unet")
NOTHING = torch.zeros(10)
MAPS = ring_of_coils(N, COILS)


@pytest.fixture(scope="module")
def truth() -> tuple[Tensor, Tensor, Tensor]:
    """Image, field of 17 Hz root mean square, and mask."""
    magnitude, mask = head((N, N), 210 / N, [20.0], torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    image = 80 * magnitude[0] * torch.exp(2j * math.pi * (0.3 * x + 0.5 * y**2))
    field_hz = 25 * (2 * x + 6 * (y**2 - x**2) + 20 * x * y**2 - 0.2)
    return image, field_hz, mask[0]


def scan(truth: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    image, field_hz, _ = truth
    signal = exact_signal(image, MAPS, field_hz, TRAJECTORY.double(), TIMES.double())
    return (signal + complex_noise(*signal.shape, seed=1, dtype=signal.dtype)).to(torch.complex64)


def problem_of(
    kspace: Tensor, mask: Tensor, every: int = 1, maps: Tensor | None = None, errors: CoilErrors | None = None
) -> BlindProblem:
    """With cubic fields, on the pixels of every so many-th line and column and the samples that belong to them.

    Pixels n // 2 lie on each other, so that the same coefficients mean the same field.
    """
    n = N // every
    kept = int((TRAJECTORY.norm(dim=0)[0] < n / 2).sum())
    trajectory, times = TRAJECTORY[..., :kept], TIMES[:kept].expand(SHOTS, kept)
    encoding = Encoding(sampling_operator(trajectory, (n, n)), LowRank(times, -150, 150))
    basis = polynomial_basis(mask, 3)
    pixels = slice(None, None, every)
    basis = replace(basis, functions=basis.functions[:, pixels, pixels], mask=mask[pixels, pixels])
    if errors is not None:
        errors = CoilErrors(errors.functions[:, pixels, pixels].contiguous(), errors.deviation)
    maps = (MAPS if maps is None else maps)[:, pixels, pixels].to(torch.complex64)
    return BlindProblem.of(encoding, maps, kspace[..., :kept], times, basis, errors)


@pytest.fixture(scope="module")
def problem(truth) -> BlindProblem:
    return problem_of(scan(truth), truth[2])


@pytest.fixture(scope="module")
def half(truth) -> BlindProblem:
    return problem_of(scan(truth), truth[2], 2)


def seeded(seed: int = 0, **settings) -> Run:
    return Run(torch.Generator().manual_seed(seed), **settings)


def image_error(image: Tensor, unit: Tensor, truth: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of the magnitude in the mask: a constant phase and one of the field at the time zero are the same."""
    magnitude, mask = truth[0].abs(), truth[2]
    return relative(((image * unit).abs() - magnitude)[mask], magnitude[mask])


def field_error(field_hz: Tensor, truth: tuple[Tensor, Tensor, Tensor]) -> float:
    return float((field_hz - truth[1])[truth[2]].square().mean().sqrt())


def stages_of(name: str, problem: BlindProblem, half: BlindProblem) -> list[Stage]:
    return [alone(lambda _: problem)] if name == "alone" else [coarse(lambda _: half), fine(lambda _: problem)]


@pytest.fixture(scope="module", params=["alone", "coarse and fine"])
def found(request, problem, half) -> BlindEstimate:
    return blind_gauss_newton(stages_of(request.param, problem, half), PRIOR, seeded(), NOTHING)


def test_the_field_is_found(found, truth):
    before, after = (field_error(field_hz, truth) for field_hz in (torch.zeros(N, N), found.field_hz))
    assert after < before / 4


@pytest.fixture(scope="module")
def without_and_known(problem, truth) -> list[float]:
    """Errors of the images in no field, in the true one, and there with as many steps as are usual."""
    scaled = problem.scaled_for(PRIOR.convention, problem.start)
    short = {"steps": _IMAGE_STEPS, "highest": _IMAGE_LEVEL}
    known = problem.basis.fit(truth[1].float())
    images = [
        decomposed_diffusion(scaled.given(scaled.start._replace(field=theta)), PRIOR, seeded(), **settings).image
        for theta, settings in ((NOTHING, short), (known, short), (known, {}))
    ]
    return [image_error(image, scaled.unit, truth) for image in images]


def test_the_image_is_nearly_that_of_the_true_field(found, without_and_known, truth):
    without, known, best = without_and_known
    blind = image_error(found.image.image, found.unit, truth)
    assert blind < 0.6 * without
    assert blind < 1.15 * known
    assert blind < 1.3 * best


def test_what_is_told_of_the_run_is_true(found, truth):
    assert found.image.steps == found.image.planned == len(found.misfits) + _IMAGE_STEPS
    assert found.misfits[-1] == pytest.approx(1, abs=0.4)
    assert found.misfits[0] > 3 * found.misfits[-1]


@pytest.mark.parametrize("every", [1, 2], ids=["the only stage", "the first stage"])
def test_the_field_is_as_far_off_as_is_told_after_the_first_stage(problem, half, truth, every):
    given = problem if every == 1 else half
    found = blind_gauss_newton([coarse(lambda _: given)], PRIOR, seeded(), NOTHING)
    there = truth[2][::every, ::every]
    error = (found.field_hz - truth[1][::every, ::every])[there].square().mean().sqrt()
    assert 0.25 < float(found.field_deviation_hz[there].square().mean().sqrt() / error) < 4


def test_later_stages_come_nearer_than_is_told(problem, half, truth, monkeypatch):
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 1)
    stages = [coarse(lambda _: half), replace(fine(lambda _: problem), steps=3, more=0)]
    found = blind_gauss_newton(stages, PRIOR, seeded(), NOTHING)
    first = blind_gauss_newton([coarse(lambda _: half)], PRIOR, seeded(), NOTHING)
    torch.testing.assert_close(found.field_deviation_hz[::2, ::2], first.field_deviation_hz, rtol=1e-3, atol=1e-3)
    assert float(found.field_deviation_hz[truth[2]].square().mean().sqrt()) > field_error(found.field_hz, truth)


def wrong_maps() -> Tensor:
    """Off by smooth errors, 8 % root mean square of all of them together; of unit norm."""
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    waves = [torch.exp(2j * math.pi * (p * y + q * x)) for p in (-1.5, 0, 1.5) for q in (-1.5, 0, 1.5)]
    off = torch.einsum("ck,kyx->cyx", complex_noise(COILS, 9, seed=4, dtype=torch.complex128), torch.stack(waves))
    wrong = MAPS + 0.08 * off / off.abs().square().sum(0).mean().sqrt()
    return wrong / wrong.abs().square().sum(0).sqrt()


def maps_error(maps: Tensor, truth: tuple[Tensor, Tensor, Tensor]) -> float:
    """A phase in each pixel that all coils have in common is the image's."""
    phase = torch.sgn((maps.conj() * MAPS).sum(0))
    return relative(((phase * maps) - MAPS)[:, truth[2]], MAPS[:, truth[2]])


@pytest.fixture(scope="module")
def with_wrong_maps(truth) -> list[BlindEstimate]:
    """Maps taken for right, and sought too."""

    def found(errors: CoilErrors | None) -> BlindEstimate:
        problem, half = (problem_of(scan(truth), truth[2], every, wrong_maps(), errors) for every in (1, 2))
        stages = [replace(coarse(lambda _: half), steps=6, more=0), replace(fine(lambda _: problem), steps=3, more=0)]
        return blind_gauss_newton(stages, PRIOR, seeded(), NOTHING)

    return [found(None), found(CoilErrors.smooth((N, N), (210.0, 210.0)))]


def test_wrong_coil_maps_are_mended(with_wrong_maps, truth):
    known, sought = with_wrong_maps
    before = maps_error(wrong_maps(), truth)
    assert torch.equal(known.coil_maps, wrong_maps().to(torch.complex64))
    assert maps_error(sought.coil_maps, truth) < 0.3 * before
    torch.testing.assert_close(sought.coil_maps.abs().square().sum(0), torch.ones(N, N))


def test_field_and_image_are_nearer_to_the_truth_where_wrong_maps_are_sought_too(with_wrong_maps, truth):
    known, sought = with_wrong_maps
    assert field_error(sought.field_hz, truth) < 0.5 * field_error(known.field_hz, truth)
    before, after = (image_error(found.image.image, found.unit, truth) for found in (known, sought))
    assert after < 0.8 * before
    assert sought.misfits[-1] < known.misfits[-1]


@pytest.fixture
def few_draws(monkeypatch) -> None:
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._DRAWS", 2)


@pytest.mark.parametrize(("name", "enough"), [("alone", 2), ("coarse and fine", 0), ("coarse and fine", 3)])
def test_stops_when_told(problem, half, few_draws, name, enough):
    asked, stages = [], stages_of(name, problem, half)

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < enough

    found = blind_gauss_newton(stages, PRIOR, seeded(go_on=go_on), NOTHING)
    planned = sum(stage.steps + stage.more for stage in stages) + _IMAGE_STEPS
    assert (found.image.steps, found.image.planned, len(found.misfits)) == (enough, planned, enough)
    assert sorted(set(asked)) == [(done, planned) for done in range(enough + 1)]
    assert found.image.image.shape == found.field_hz.shape == (N, N)
    assert torch.isfinite(found.image.image.abs()).all()
    assert bool(found.field_hz.any()) == (enough > 0)


@pytest.mark.parametrize(("rest_hz", "more"), [(0.0, 2), (1e3, 0)])
def test_steps_at_the_lowest_level_follow_while_the_field_moves(half, few_draws, monkeypatch, rest_hz, more):
    """And are planned, until it has come to rest."""
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._AT_REST_HZ", rest_hz)
    asked = []

    def go_on(done: int, planned: int) -> bool:
        asked.append(planned)
        return True

    stages = [replace(alone(lambda _: half), steps=2, more=2)]
    found = blind_gauss_newton(stages, PRIOR, seeded(go_on=go_on), NOTHING)
    assert len(found.misfits) == 2 + more
    assert found.image.steps == found.image.planned == asked[-1] == 2 + more + _IMAGE_STEPS
    assert asked[0] == 4 + _IMAGE_STEPS


def test_what_the_field_adds_to_the_deviation_is_counted_and_ends_when_told(half, few_draws, monkeypatch):
    """Two draws, after two steps of the field and three of the image."""
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 3)
    stages, asked = [replace(alone(lambda _: half), steps=2, more=0)], []

    def found(enough: int) -> Estimate:
        def go_on(done: int, planned: int) -> bool:
            asked.append((done, planned))
            return done < enough

        return blind_gauss_newton(stages, PRIOR, seeded(samples=2, go_on=go_on), NOTHING).image

    whole, less = found(99), found(6)
    assert sorted(set(asked)) == [(done, 7) for done in range(7)]
    assert (whole.steps, whole.planned) == (7, 7)
    assert (less.steps, less.planned) == (6, 7)
    assert relative(less.image - whole.image, whole.image) < 1e-4
    assert relative(less.deviation - whole.deviation, whole.deviation) > 1e-3


@pytest.mark.parametrize("known", [False, True], ids=["unknown fields", "likely fields"])
def test_fields_of_which_nothing_is_known_have_a_momentum_of_their_own(known, half, few_draws, monkeypatch):
    """With that of likely ones a phantom's field, in polynomials, was led astray."""
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 1)
    likely = replace(half, basis=replace(half.basis, deviation_hz=torch.full_like(NOTHING, 100.0)))
    stages = [replace(alone(lambda _: likely if known else half), steps=2, more=0)]

    def field_with(momentum: float) -> Tensor:
        monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._MOMENTUM", momentum)
        return blind_gauss_newton(stages, PRIOR, seeded(), NOTHING).field_hz

    none, much = field_with(0.0), field_with(0.75)
    moved = relative(much - none, none)
    assert moved > 0.1 if known else moved < 1e-4


def test_same_seed_same_estimate(half, few_draws, monkeypatch):
    """To rounding, which depends on where arrays lie in memory."""
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 5)

    def found(seed: int) -> BlindEstimate:
        stages = [replace(alone(lambda _: half), steps=2, more=0)]
        return blind_gauss_newton(stages, PRIOR, seeded(seed, samples=2), NOTHING)

    first, again, other = (found(seed) for seed in (1, 1, 2))
    assert relative(again.image.image - first.image.image, first.image.image) < 1e-4
    assert relative(again.field_hz - first.field_hz, first.field_hz) < 1e-4
    assert relative(again.field_deviation_hz - first.field_deviation_hz, first.field_deviation_hz) < 1e-4
    assert relative(other.image.image - first.image.image, first.image.image) > 1e-3
    assert relative(other.field_hz - first.field_hz, first.field_hz) > 3e-4


def test_the_deviation_of_several_samples_holds_that_of_the_field_and_their_mean_is_as_it_was(
    half, few_draws, monkeypatch
):
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 3)

    def found(samples: int, error_hz: float) -> BlindEstimate:
        errors = error_hz * torch.randn(8, len(NOTHING), generator=torch.Generator().manual_seed(3))
        monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._field_errors", lambda *_: errors)
        stages = [replace(alone(lambda _: half), steps=2, more=0)]
        return blind_gauss_newton(stages, PRIOR, seeded(samples=samples), NOTHING)

    known, open_, single = (found(*given).image for given in ((2, 0.0), (2, 5.0), (1, 5.0)))
    assert relative(open_.image - known.image, known.image) < 1e-4
    assert float((open_.deviation - known.deviation).min()) > -1e-4 * float(known.deviation.max())
    assert relative(open_.deviation - known.deviation, known.deviation) > 0.1
    assert single.deviation is None


@pytest.mark.parametrize(("stage", "asked"), [(fine, 2), (coarse, 0)])
def test_only_the_fine_stage_allows_for_what_a_denoised_image_follows(problem, few_draws, monkeypatch, stage, asked):
    asked_about = []

    def recorded(prior, noisy, denoised, level):
        assert relative(prior.denoise(noisy, level) - denoised, denoised) < 0.01
        asked_about.append(level)
        return not_followed(prior, noisy, denoised, level)

    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton.not_followed", recorded)
    run = Run(torch.Generator().manual_seed(1), go_on=lambda done, planned: done < 2)
    blind_gauss_newton([stage(lambda _: problem)], PRIOR, run, NOTHING)
    assert len(asked_about) == asked


def test_the_field_is_not_told_to_be_farther_off_than_fields_go(problem, few_draws):
    """Where nothing is known of it but that."""
    narrow = replace(problem, basis=replace(problem.basis, deviation_hz=torch.full_like(NOTHING, 1e-3)))
    run = Run(torch.Generator().manual_seed(1), go_on=lambda done, planned: done < 1)
    found = blind_gauss_newton([coarse(lambda _: narrow)], PRIOR, run, NOTHING)
    known = narrow.basis.functions.square().sum(0).sqrt() * 1e-3
    assert 0.5 < float(found.field_deviation_hz.norm() / known.norm()) < 2


def test_nor_farther_than_the_range_is_wide(half, few_draws, monkeypatch):
    """Where nothing is known at all, and the data tell nothing."""
    monkeypatch.setattr("recon_core.solvers.blind_linearised._LEAST_CAUTION", 1e12)
    run = Run(torch.Generator().manual_seed(1), go_on=lambda done, planned: done < 1)
    found = blind_gauss_newton([coarse(lambda _: half)], PRIOR, run, NOTHING)
    assert float(found.field_deviation_hz.max()) == pytest.approx(300)


def test_the_field_is_told_to_be_farther_off_where_the_data_tell_less(half, few_draws, monkeypatch):
    """By the square root, of a field of which nothing else is known."""
    monkeypatch.setattr("recon_core.solvers.blind_linearised._ALIKE", 0.0)

    def told(caution: float) -> Tensor:
        monkeypatch.setattr("recon_core.solvers.blind_linearised._LEAST_CAUTION", caution)
        run = Run(torch.Generator().manual_seed(1), go_on=lambda done, planned: done < 1)
        return blind_gauss_newton([coarse(lambda _: half)], PRIOR, run, NOTHING).field_deviation_hz

    torch.testing.assert_close(told(9.0), 3 * told(1.0), rtol=1e-3, atol=1e-3)


def test_a_field_beyond_the_range_does_not_run_away(truth, few_draws, monkeypatch):
    """What the data no longer change with is not moved by them: it went 650 Hz beyond the range of 150 Hz before."""
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._IMAGE_STEPS", 1)
    image, field_hz, mask = truth
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    peak_hz = 300 * torch.exp(-((y + 0.35) ** 2 + x**2) / (2 * 0.1**2))
    kspace, basis = scan((image, field_hz + peak_hz, mask)), smooth_basis(mask, (210.0, 210.0))
    whole, half = (
        replace(problem_of(kspace, mask, every), basis=some) for every, some in ((1, basis), (2, basis.halved))
    )
    farthest_hz, given = [], BlindProblem.given

    def watched(self: BlindProblem, at: Whereabouts) -> LinearProblem:
        farthest_hz.append(float(self.basis.field(at.field).abs().max()))
        return given(self, at)

    monkeypatch.setattr(BlindProblem, "given", watched)
    start = torch.zeros_like(basis.deviation_hz)
    found = blind_gauss_newton([coarse(lambda _: half), fine(lambda _: whole)], PRIOR, seeded(), start)
    assert float(found.field_hz.max()) == 150
    assert 150 < max(farthest_hz) < 300


def test_no_step_moves_the_field_further_than_its_limit(problem, truth, few_draws, monkeypatch):
    """Root mean square where the image is bright, which the first denoised one about knows."""
    limit = 4.0
    monkeypatch.setattr("recon_core.solvers.blind_gauss_newton._LARGEST_STEP_HZ", limit)
    run = seeded(go_on=lambda done, planned: done < 1)
    found = blind_gauss_newton([alone(lambda _: problem)], PRIOR, run, NOTHING)
    power = truth[0].abs().square()
    moved = ((found.field_hz.square() * power).sum() / power.sum()).sqrt()
    assert float(moved) == pytest.approx(limit, rel=0.2)


def test_refusals(problem, truth):
    with pytest.raises(ValueError, match="expected at least one stage"):
        blind_gauss_newton([], PRIOR, seeded(), NOTHING)
    rising = replace(alone(lambda _: problem), highest=0.01, lowest=0.1)
    with pytest.raises(ValueError, match="noise levels that fall"):
        blind_gauss_newton([rising], PRIOR, seeded(), NOTHING)
    nothing = problem_of(torch.zeros(COILS, SHOTS, SAMPLES, dtype=torch.complex64), truth[2])
    with pytest.raises(ValueError, match="cannot be scaled"):
        blind_gauss_newton([alone(lambda _: nothing)], PRIOR, seeded(), NOTHING)
