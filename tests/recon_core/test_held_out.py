"""Samples that were held out, foretold with the true field and others, of a small simulated scan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention, Prior
from recon_core.simulation import exact_signal
from recon_core.solvers.held_out import held_out_misfits
from recon_core.solvers.linear_problem import LinearProblem

from analytic import complex_noise, positions, ring_of_coils, smooth_head, spiral_trajectory

N, COILS, SHOTS, SAMPLES = 20, 4, 8, 200
TRAJECTORY = spiral_trajectory(N, SHOTS, SAMPLES).double()
TIMES = torch.linspace(0, 0.012, SAMPLES).double()
MAPS = ring_of_coils(N, COILS)
FIELD_HZ = 80 * positions(N)[:, None] + 100 * positions(N) ** 2
HELD = torch.arange(SHOTS) == 3


@pytest.fixture(scope="module")
def kspace() -> Tensor:
    """Of about ten times its noise."""
    signal = exact_signal(30 * smooth_head(N), MAPS, FIELD_HZ, TRAJECTORY, TIMES)
    return signal + complex_noise(*signal.shape, dtype=signal.dtype)


def model(which: Tensor, field_hz: Tensor, maps: Tensor) -> LinearModel:
    trajectory = TRAJECTORY[:, which]
    functions = LowRank(TIMES.expand(trajectory.shape[1:]), -100, 100, 1e-4)
    return LinearModel(Encoding(sampling_operator(trajectory, (N, N)), functions), maps, field_hz)


def white(channels: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of white Gaussian images, 0.5 per real channel."""
    return channels * (0.25 / (0.25 + sigma.square()))[:, None, None, None]


PRIOR = Prior(white, Convention("maximum", 0.01, 1.0), "white")


def misfit(kspace: Tensor, field_hz: Tensor, maps: Tensor = MAPS, prior: Prior = PRIOR, shots: Tensor = ~HELD) -> float:
    others = LinearProblem.of(model(shots, field_hz, maps), kspace[:, shots]).scaled_for(prior.convention)
    generator = torch.Generator().manual_seed(0)
    misfits = held_out_misfits(others, prior, generator, model(HELD, field_hz, maps), kspace[:, HELD])
    assert misfits.shape == (COILS, 1, SAMPLES)
    return float(misfits.mean())


def test_the_true_model_misses_little_more_than_the_noise(kspace):
    """The rest is that of an image of which the prior knows nothing."""
    assert 0.9 < misfit(kspace, FIELD_HZ) < 1.8


def test_no_field_foretells_worse_than_one_that_is_nearly_true_and_that_worse_than_the_truth(kspace):
    none, nearly, true = (misfit(kspace, share * FIELD_HZ) for share in (0.0, 0.8, 1.0))
    assert none > 1.8 * nearly
    assert nearly > true + 0.05


def test_wrong_coil_maps_foretell_worse(kspace):
    wrong = MAPS + 0.1 * positions(N) * MAPS.roll(1, 0)
    assert misfit(kspace, FIELD_HZ, wrong) > misfit(kspace, FIELD_HZ) + 0.05


def test_it_does_not_depend_on_the_scale_of_the_signal():
    """Without noise all that is missed is of the signal, but for what the prior says beside data that weigh more."""
    exact = exact_signal(30 * smooth_head(N), MAPS, FIELD_HZ, TRAJECTORY, TIMES)
    once, thrice = (misfit(scale * exact, 0 * FIELD_HZ) for scale in (1, 3))
    assert thrice == pytest.approx(9 * once, rel=0.05)


def test_what_a_prior_knows_helps_to_foretell_from_few_interleaves(kspace):
    """Here the images themselves: the misfit falls to that of the noise, in the true field alone."""
    few = torch.arange(SHOTS) % 4 == 1
    unit = LinearProblem.of(model(few, FIELD_HZ, MAPS), kspace[:, few]).scaled_for(PRIOR.convention).unit
    truth = torch.view_as_real(30 * smooth_head(N) / unit).movedim(-1, 0)
    knows = Prior(lambda channels, sigma: truth.to(channels).expand_as(channels), PRIOR.convention, "the head")
    assert misfit(kspace, FIELD_HZ, prior=knows, shots=few) < 0.7 * misfit(kspace, FIELD_HZ, shots=few)
    assert misfit(kspace, 0 * FIELD_HZ, prior=knows, shots=few) > 2 * misfit(kspace, FIELD_HZ, prior=knows, shots=few)


def test_the_same_draws_give_the_same_misfit(kspace):
    assert misfit(kspace, FIELD_HZ) == misfit(kspace, FIELD_HZ)
