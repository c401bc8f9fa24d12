import math

import pytest
import torch

from recon_core.operators.off_resonance import HardSegments, LowRank

DWELL, SAMPLES = 8e-6, 1950
READOUT = DWELL * torch.arange(SAMPLES, dtype=torch.float64).repeat(2, 1)  # 15.6 ms
LATE = READOUT + 30e-3
STAGGERED = READOUT + torch.tensor([[2e-3], [5e-3]], dtype=torch.float64)
RANGES = [(-150.0, 150.0), (-74.0, 87.0), (20.0, 420.0), (-720.0, 720.0)]


def exponentials(times, field_hz):
    return torch.exp(-2j * math.pi * field_hz[:, None, None] * times)


def errors(functions, times, field_hz):
    """Relative, at each frequency."""
    found = torch.einsum("lsn,fl->fsn", functions.weights, functions.coefficients(field_hz))
    return (found - exponentials(times, field_hz)).abs().square().mean((1, 2)).sqrt()


@pytest.mark.parametrize(
    ("times", "low_hz", "high_hz", "error"),
    [
        *((READOUT, *reach, 1e-3) for reach in RANGES),
        (READOUT, -150.0, 150.0, 1e-2),
        (READOUT, -150.0, 150.0, 1e-5),
        (LATE, 20.0, 420.0, 1e-2),
        (LATE, -74.0, 87.0, 1e-5),
        (STAGGERED, -74.0, 87.0, 1e-3),
        (STAGGERED, 20.0, 420.0, 1e-5),
    ],
)
def test_no_frequency_of_the_range_has_a_larger_error(times, low_hz, high_hz, error):
    functions = LowRank(times, low_hz, high_hz, error)
    worst = errors(functions, times, torch.linspace(low_hz, high_hz, 401, dtype=torch.float64)).max().item()
    assert worst < 1.01 * error
    assert worst == pytest.approx(functions.error, rel=0.1)  # both look between some frequencies only


@pytest.mark.parametrize("error", [1e-2, 1e-3, 1e-5])
def test_one_term_less_would_miss_the_error_for_any_functions_of_time(error):
    field = torch.linspace(-150, 150, 301, dtype=torch.float64)
    singular = torch.linalg.svdvals(exponentials(READOUT[:1], field)[:, 0]).square()
    left_out = (1 - singular.cumsum(0) / singular.sum()).clamp_min(0).sqrt()  # averaged over frequencies: a lower bound
    terms = len(LowRank(READOUT, -150, 150, error))
    assert left_out[terms - 2] > error / 10
    assert terms <= int((left_out > error).sum()) + 2


def test_functions_are_orthonormal_in_the_mean_over_samples():
    weights = LowRank(STAGGERED, -74, 87).weights.flatten(1)
    gram = weights.conj() @ weights.T / weights.shape[1]
    torch.testing.assert_close(gram, torch.eye(len(weights), dtype=gram.dtype), atol=1e-10, rtol=0)


@pytest.mark.parametrize("functions", [LowRank(STAGGERED, 20, 420), HardSegments(STAGGERED, 12)], ids=["low", "hard"])
def test_products_of_functions_are_real_and_few(functions):
    pairs = torch.einsum("isn,jsn->ijsn", functions.weights.conj(), functions.weights)
    terms = len(functions)
    nodes = torch.eye(terms, dtype=torch.float64) if functions.nodes is None else functions.nodes
    found = torch.einsum("jsn,ji,jk->iksn", functions.products, nodes, nodes)
    torch.testing.assert_close(found.to(pairs), pairs, atol=1e-5, rtol=0)
    assert len(functions.products) < 2.5 * terms


@pytest.mark.parametrize("functions", [LowRank(LATE, -160, 160), HardSegments(LATE, 9)], ids=["low", "hard"])
def test_derivatives_against_finite_differences(functions):
    field, step = torch.linspace(-150, 150, 61, dtype=torch.float64), 1e-3
    difference = functions.coefficients(field + step) - functions.coefficients(field - step)
    torch.testing.assert_close(functions.derivatives(field), difference / (2 * step), atol=1e-8, rtol=1e-6)


def test_derivatives_are_those_of_autograd():
    functions = LowRank(LATE, -160, 160)
    field = torch.linspace(-160, 160, 41, dtype=torch.float64, requires_grad=True)
    values = torch.view_as_real(functions.coefficients(field)).sum(0)
    found = [[torch.autograd.grad(part, field, retain_graph=True)[0] for part in term] for term in values]
    slopes = torch.stack([torch.complex(*parts) for parts in found], -1)
    torch.testing.assert_close(functions.derivatives(field.detach()), slopes)


def test_coefficients_keep_the_shape_of_the_map_and_its_precision():
    functions = LowRank(READOUT.float(), -100, 100)
    field = torch.zeros(3, 4, 5)
    assert functions.weights.dtype == torch.complex64
    assert functions.coefficients(field).shape == (3, 4, 5, len(functions))
    assert functions.coefficients(field).dtype == functions.derivatives(field).dtype == torch.complex64


@pytest.mark.parametrize("offset_hz", [0.0, 50.0])
def test_one_frequency_alone_needs_one_term(offset_hz):
    functions = LowRank(LATE, offset_hz, offset_hz, 1e-4)
    assert len(functions) == 1
    assert errors(functions, LATE, torch.tensor([offset_hz], dtype=torch.float64)).item() < 1e-4


def test_samples_of_one_time_need_one_term():
    times = torch.full((1, 7), 4e-3, dtype=torch.float64)
    functions = LowRank(times, -500, 500, 1e-6)
    assert len(functions) == 1
    assert errors(functions, times, torch.linspace(-500, 500, 11, dtype=torch.float64)).max() < 1e-6


@pytest.mark.parametrize("value", [161.0, -161.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "functions", [LowRank(READOUT, -160, 160), HardSegments(READOUT, 9, -160, 160)], ids=["low", "hard"]
)
def test_refuses_a_field_that_leaves_the_range(functions, value):
    field = torch.tensor([0.0, value])
    for ask in (functions.coefficients, functions.derivatives):
        with pytest.raises(ValueError, match=r"reaches from .* Hz, but .* built for -160 to 160 Hz"):
            ask(field)


@pytest.mark.parametrize(("low_hz", "high_hz"), [(1, -1), (-math.inf, 0), (math.nan, 1)])
def test_refuses_what_is_not_a_range(low_hz, high_hz):
    with pytest.raises(ValueError, match="expected a range of frequencies"):
        LowRank(READOUT, low_hz, high_hz)


def test_refuses_a_range_that_can_only_be_a_mistake():
    with pytest.raises(
        ValueError, match=r"from -20000 to 20000 Hz over 15.592 ms turns the phase 624 times, more than 64"
    ):
        LowRank(READOUT, -20000, 20000)


def test_refuses_times_that_are_not_finite():
    with pytest.raises(ValueError, match="times"):
        LowRank(torch.tensor([[0.0, math.nan]]), -10, 10)


@pytest.mark.parametrize("error", [0, 1e-9, 1, math.nan])
def test_refuses_an_error_beyond_rounding(error):
    with pytest.raises(ValueError, match="expected an error"):
        LowRank(READOUT, -1, 1, error)


def test_hard_segments_give_each_sample_the_phase_of_its_segment():
    segments = HardSegments(READOUT, 5)
    field = torch.tensor([-83.0, 41.0], dtype=torch.float64)
    found = torch.einsum("lsn,fl->fsn", segments.weights, segments.coefficients(field))
    parts = READOUT.tensor_split(5, 1)
    centres = torch.cat([part.mean().expand_as(part) for part in parts], 1)
    torch.testing.assert_close(found, exponentials(centres, field))


def test_hard_segments_without_a_range_take_any_field_that_is_finite():
    segments = HardSegments(READOUT, 5)
    assert segments.coefficients(torch.tensor([5000.0])).abs().sum() == 5
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="reaches from"):
            segments.coefficients(torch.tensor([0.0, value]))


@pytest.mark.parametrize(("number", "reach_hz"), [(5, 700), (3, 90), (40, 300)])
def test_the_error_of_hard_segments_is_a_bound(number, reach_hz):
    segments = HardSegments(READOUT, number, -reach_hz, reach_hz)
    found = errors(segments, READOUT, torch.linspace(-reach_hz, reach_hz, 301, dtype=torch.float64))
    assert 0.8 * segments.error < found.max() < 1.001 * segments.error


def test_products_of_many_functions_are_interpolated_as_well():
    functions = LowRank(READOUT[:1, ::2], -1900, 1900)
    weights, products = functions.weights[..., ::5], functions.products[..., ::5]  # in the mean over samples, some do
    pairs = torch.einsum("isn,jsn->ijsn", weights.conj(), weights)
    found = torch.einsum("jsn,ji,jk->iksn", products, functions.nodes, functions.nodes)
    assert (found - pairs).abs().square().mean().sqrt() < 1e-5  # functions have a root mean square of one
    assert len(functions.products) < 2.5 * len(functions)


@pytest.mark.parametrize("number", [10, 20, 40])
def test_error_of_hard_segments_falls_as_one_over_their_number(number):
    segments = HardSegments(READOUT, number, -100, 100)
    law = math.pi / math.sqrt(3) * 100 * READOUT.max().item() / number
    assert segments.error == pytest.approx(law, rel=0.05)
    assert errors(segments, READOUT, torch.tensor([100.0], dtype=torch.float64)).item() == pytest.approx(segments.error)


def test_a_pause_in_the_readout_leaves_no_empty_segment():
    times = torch.cat([READOUT[:, :100], READOUT[:, :100] + 20e-3], 1)
    segments = HardSegments(times, 50)
    assert segments.weights.abs().sum((1, 2)).min() > 0
    assert torch.isfinite(torch.view_as_real(segments.coefficients(torch.zeros(3)))).all()


def test_refuses_no_segments():
    with pytest.raises(ValueError, match="at least one segment, got 0"):
        HardSegments(READOUT, 0)
