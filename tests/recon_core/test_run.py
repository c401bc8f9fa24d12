import time

import numpy as np
import pytest
import torch

from recon_core.solvers.run import Budget, Estimate, Run

from analytic import complex_noise


def test_estimate_has_the_mean_and_deviation_of_complex_samples():
    samples = complex_noise(5, 2, 4, 3, dtype=torch.complex128)
    estimate = Estimate.of(samples, 7, 9)
    np.testing.assert_allclose(estimate.image, samples.numpy().mean(0))
    np.testing.assert_allclose(estimate.deviation, samples.numpy().std(0, ddof=1))
    assert not estimate.deviation.is_complex()
    assert (estimate.steps, estimate.planned) == (7, 9)


def test_one_sample_has_no_deviation():
    samples = complex_noise(1, 4, 3)
    estimate = Estimate.of(samples, 1, 1)
    assert estimate.deviation is None
    assert torch.equal(estimate.image, samples[0])


def test_run_goes_on_unless_told_otherwise():
    run = Run(torch.Generator())
    assert run.samples == 1
    assert all(run.go_on(done, 5) for done in range(5))


def test_budget_ends_with_its_time():
    budget = Budget(0.05)
    assert budget(1, 10)
    time.sleep(0.06)
    assert not budget(1, 10)
    assert not budget(9, 10)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_budget_always_allows_the_first_step(seconds):
    budget = Budget(seconds)
    assert budget(0, 10)
    assert not budget(1, 10)


def test_budget_without_a_limit():
    assert Budget()(10**6, 10**7)
