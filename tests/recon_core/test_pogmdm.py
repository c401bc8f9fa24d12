import copy
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from recon_core.priors.pogmdm import experts, model, shearlets
from recon_core.priors.pogmdm.experts import SPREAD, Tables, all_weights, mixture_mean
from recon_core.priors.pogmdm.model import PoGMDM, PoGMDMConfig

from analytic import smooth_head

RULES = ["tight", "published"]


@pytest.fixture
def coarse(monkeypatch):
    """Tables of few nodes, for claims that do not rest on how fine they are."""
    monkeypatch.setattr(model, "_NODES", 129)


def _model(rule="tight", seed=0):
    """A model far from its symmetric start, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    network = PoGMDM(PoGMDMConfig(rule)).double().eval().requires_grad_(False)
    network.gain.uniform_(0.5, 2, generator=generator)
    for parameter, change in ((network.low_pass, 0.01), (network.fan, 0.003)):
        parameter += change * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    network.weights *= torch.rand(network.weights.shape, generator=generator, dtype=torch.float64)
    network.project_()
    return network


def _first():
    """A model as a training starts with it, in double precision."""
    return PoGMDM(PoGMDMConfig()).double().eval().requires_grad_(False)


def _noisy(shape, sigma, seed=1):
    generator = torch.Generator().manual_seed(seed)
    clean = smooth_head(64).real.double()[..., : shape[-2], : shape[-1]]
    return clean + sigma[:, None, None, None] * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_it_has_1578_numbers():
    assert sum(parameter.numel() for parameter in PoGMDM(PoGMDMConfig()).parameters()) == 9 + 17**2 + 20 * 63 + 20


@pytest.mark.parametrize("rule", RULES)
def test_the_score_is_the_gradient_of_the_potential(rule):
    network, sigma = _model(rule), torch.tensor([0.02, 0.7], dtype=torch.float64)
    image = _noisy((2, 2, 15, 18), sigma)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-5 * direction
    slope = (network.potential(image + step, sigma) - network.potential(image - step, sigma)) / 2e-5
    found = -(network.score(image, sigma, exact=True) * direction).sum((1, 2, 3))
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_tables_agree_with_the_exact_sum_also_far_beyond_their_reach(rule, scale):
    network = _model(rule)
    for level in (0.005, 10.0):
        sigma = torch.tensor([level], dtype=torch.float64)
        image = scale * _noisy((1, 1, 16, 17), sigma)
        exact = network.score(image, sigma, exact=True)
        assert (network.score(image, sigma) - exact).norm() < 5e-4 * exact.norm()
        single = _model(rule).float().score(image.float(), sigma.float())
        assert (single - exact).norm() < 5e-4 * exact.norm()


def test_gradients_reach_all_numbers():
    network, sigma = _model().train().requires_grad_(), torch.tensor([0.05, 0.05, 0.6], dtype=torch.float64)
    image = _noisy((3, 1, 16, 17), sigma)

    def loss():
        return network(image, sigma).square().sum()

    torch.autograd.backward(loss())
    for parameter in network.parameters():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = loss()
            parameter -= 2e-6 * direction
            slope = (above - loss()) / 2e-6
            parameter += 1e-6 * direction
        # Where the nodes of the tables lie moves with the numbers too, and has no gradient.
        assert (parameter.grad * direction).sum() == pytest.approx(float(slope), rel=0.02)


def _flat_bands(low_pass, fan, frequencies):
    """Ideal filters: disjoint bands that together pass everything, each with a gain of its own."""
    rows, columns = (torch.arange(len(along)) for along in (frequencies.along_y, frequencies.along_x))
    # A frequency and its negative belong to the same filter, else it would not be real.
    band = (torch.minimum(rows, len(rows) - rows)[:, None] + columns) % shearlets.FILTERS
    gains = torch.linspace(0.2, 0.6, shearlets.FILTERS, dtype=torch.float64)[:, None, None]
    return gains * (band == torch.arange(shearlets.FILTERS)[:, None, None]) + 0j


@pytest.mark.parametrize("rule", RULES)
def test_gaussian_experts_on_disjoint_flat_bands_diffuse_exactly(rule, monkeypatch):
    monkeypatch.setattr(shearlets, "spectra", _flat_bands)
    monkeypatch.setattr(shearlets, "coarse_spectrum", lambda low_pass, at: 0j * at.along_y[:, None] * at.along_x)
    network = _model(rule)
    if rule == "published":
        network.gain.fill_(1.0)  # the rule leaves the factors out, so it is exact without them
    network.weights.zero_()
    network.weights[:, 0] = 1.0
    size = (26, 31)
    octave = network._system(torch.zeros(1, 1, *size)).octaves[0]
    prior = SPREAD**2 / torch.einsum("k,kyx->yx", octave.share, octave.power)
    assert rule == "published" or octave.share.max() < 0.2
    for level in (0.005, 0.03, 0.4, 10.0, 160.0):
        sigma = torch.tensor([level], dtype=torch.float64)
        # Weights of zero count as 1e-14, so every expert alone must think the image possible.
        noise = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        image = float(octave.share.min().sqrt()) * level * noise
        expected = torch.fft.irfft2(-torch.fft.rfft2(image) / (prior + level**2), s=size)
        torch.testing.assert_close(network.score(image, sigma, exact=True), expected, rtol=1e-6, atol=1e-6 / level)


def test_tight_shearlets_share_every_frequency_out():
    system = _model("tight")._system(torch.zeros(1, 1, 90, 141, dtype=torch.float64))
    shares = system.rest
    for octave in system.octaves:
        part = (octave.power / octave.speed[:, None, None] ** 2).sum(0)
        shares = model._plus(shares, part, octave.grid)
    torch.testing.assert_close(shares, torch.ones_like(shares))


def test_an_expert_counts_as_its_response_holds_noise():
    network = _model("tight")
    noise = torch.randn(100, 1, 128, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    spectrum = torch.fft.rfft2(noise)
    for octave in network._system(noise).octaves:
        response = octave.responses(model._held(spectrum, octave.grid))
        passed = response.square().mean((0, 1, 3, 4)) / octave.speed**2
        torch.testing.assert_close(octave.share, model._EMPHASIS * passed, rtol=0.15, atol=0)


def test_coarser_grids_hold_what_their_filters_pass():
    """Nothing wraps around: the grid shows the response as it would be on the grid of the image."""
    network = _model("tight")
    low_pass, fan = network.low_pass, network.fan
    size, image = (
        (64, 96),
        _noisy((1, 1, 64, 64), torch.tensor([0.3], dtype=torch.float64)).repeat(1, 1, 1, 2)[..., :96],
    )
    system, whole = network._system(image), shearlets.Frequencies.of(size, low_pass)
    filters = shearlets.coarse_spectrum(low_pass, whole) * shearlets.spectra(low_pass, fan, whole * 4)
    octave = system.octaves[1]
    assert octave.grid == (32, 48)
    response = torch.fft.irfft2(torch.fft.rfft2(image)[0] * filters.conj(), s=size)
    found = octave.responses(model._held(torch.fft.rfft2(image), octave.grid))[0, 0]
    # They differ by the scale that makes the filters tight, which is nearly the same for all that one filter passes.
    for k in range(shearlets.FILTERS):
        direct = response[k, ::2, ::2].flatten()
        assert torch.cosine_similarity(found[k].flatten(), direct, dim=0) > 0.98


@pytest.mark.parametrize("level", [20.0, 160.0])
def test_high_noise_around_a_flat_image_is_pulled_back_whole(level):
    sigma = torch.tensor([level], dtype=torch.float64)
    noise = level * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pull = -noise / level**2
    assert (_model().score(0.5 + noise, sigma) - pull).norm() < 0.05 * pull.norm()


def test_at_the_highest_noise_it_beats_silence_and_the_mean():
    clean, sigma = smooth_head(64).real.double(), torch.full((20,), 10.0, dtype=torch.float64)
    noise = torch.randn(20, 1, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noisy = clean + 10 * noise
    network = _first()
    error = (network(noisy, sigma) - clean).square().mean()
    assert error < (noisy.mean((2, 3), keepdim=True) - clean).square().mean()
    assert error < clean.square().mean()


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("rule", RULES)
def test_mirrored_intensities_give_mirrored_images(rule):
    sigma = torch.tensor([0.1], dtype=torch.float64)
    image = _noisy((1, 1, 18, 24), sigma)
    torch.testing.assert_close(_model(rule)(-image, sigma), -_model(rule)(image, sigma))


@pytest.mark.parametrize("rule", RULES)
def test_shifting_the_image_around_shifts_the_result(rule):
    sigma = torch.tensor([0.1], dtype=torch.float64)
    image = _noisy((1, 2, 25, 30), sigma)
    turned, straight = (network(x, sigma) for network in [_model(rule)] for x in (image.roll((7, -4), (-2, -1)), image))
    # The coarse grids of a tight model do not shift along.
    assert (turned - straight.roll((7, -4), (-2, -1))).norm() < (2e-3 if rule == "tight" else 1e-12) * straight.norm()


@pytest.mark.usefixtures("coarse")
def test_transposing_the_image_transposes_the_result_if_both_cones_are_alike():
    network, sigma = _model(), torch.tensor([0.1], dtype=torch.float64)
    network.gain[10:], network.weights[10:] = network.gain[:10], network.weights[:10]
    image = _noisy((1, 1, 21, 32), sigma)
    torch.testing.assert_close(network(image.mT, sigma), network(image, sigma).mT)


def test_a_calibrated_model_predicts_noise_of_the_right_size(monkeypatch):
    """Between its levels too, and at the ends its slope stays; the potential goes along."""
    monkeypatch.setattr(model, "_NODES", 513)
    network, clean = _first(), smooth_head(64).real.double()[:48, :48].expand(3, 1, 48, 48)
    before = network.potential(clean[:1], clean.new_tensor([0.1]))
    network.calibrate_(clean, torch.zeros(3), torch.Generator().manual_seed(1))
    assert network.slopes.sub(1).abs().max() > 0.05
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for level in (0.005, 0.11, 10.0):
        predicted = level * noise + clean - network(clean + level * noise, torch.full((3,), level).double())
        slope = level * (noise * predicted).sum() / predicted.square().sum()
        assert float(slope) == pytest.approx(1, abs=0.02)
    factor = network._slope(clean.new_tensor([0.1]))
    torch.testing.assert_close(network.potential(clean[:1], clean.new_tensor([0.1])), factor * before)


@pytest.mark.usefixtures("coarse")
def test_noisy_images_calibrate_as_clean_ones_do_above_their_noise():
    clean, noise = smooth_head(64).real.double()[:48, :48].expand(4, 1, 48, 48), torch.full((4,), 0.1).double()
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slopes = []
    for images, level in ((clean, 0 * noise), (noisy, noise), (noisy, 0 * noise)):
        network = _first()
        network.calibrate_(images, level, torch.Generator().manual_seed(1))
        slopes.append(network.slopes)
    expected, found, taken_for_clean = slopes
    levels = torch.logspace(math.log10(0.005), 1, 23)
    above = levels > 0.15
    torch.testing.assert_close(found[above], expected[above], rtol=0.02, atol=0)
    below = found[levels < 0.14]
    torch.testing.assert_close(below, below[-1].expand_as(below), rtol=0.02, atol=0)  # not of the same draws
    assert (taken_for_clean / expected - 1)[above].abs().max() > 0.04


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_torch_func_are_those_of_differences(training):
    network, sigma = _model().train(training), torch.tensor([0.1, 0.5], dtype=torch.float64)
    image = _noisy((2, 2, 20, 26), sigma)
    along = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found, derivative = torch.func.jvp(lambda x: network(x, sigma), (image,), (along,))
    # Nothing of the derivative was kept that a later call would stumble over.
    torch.testing.assert_close(found, network(image, sigma))
    step = 1e-6 * along
    difference = (network(image + step, sigma) - network(image - step, sigma)) / 2e-6
    assert (derivative - difference).norm() < 1e-3 * difference.norm()


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("rule", RULES)
def test_images_of_a_batch_do_not_know_of_one_another(rule):
    network, sigma = _model(rule), torch.tensor([0.3, 0.02, 0.3], dtype=torch.float64)
    image = _noisy((3, 2, 20, 26), sigma)
    together = network(image, sigma)
    for n in range(3):
        torch.testing.assert_close(together[n : n + 1], network(image[n : n + 1], sigma[n : n + 1]))


@pytest.mark.usefixtures("coarse")
def test_published_weights_know_real_images_only():
    network, sigma = _model("published"), torch.tensor([0.3], dtype=torch.float64)
    image = _noisy((1, 2, 20, 26), sigma)
    together = network(image, sigma)
    for c in range(2):
        torch.testing.assert_close(together[:, c : c + 1], network(image[:, c : c + 1], sigma))


@pytest.mark.usefixtures("coarse")
def test_the_phase_of_an_image_does_not_matter_to_a_tight_model():
    network, sigma = _model("tight"), torch.tensor([0.3], dtype=torch.float64)
    image = _noisy((1, 2, 20, 26), sigma)
    turn = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=torch.float64)
    turned = network(torch.einsum("dc,ncyx->ndyx", turn, image), sigma)
    torch.testing.assert_close(turned, torch.einsum("dc,ncyx->ndyx", turn, network(image, sigma)))
    alone = network(image[:, :1], sigma)
    torch.testing.assert_close(network(image * torch.tensor([1.0, 0.0])[:, None, None], sigma)[:, :1], alone)


@pytest.mark.usefixtures("coarse")
def test_changed_numbers_and_sizes_are_not_answered_from_memory():
    network, sigma = _model(), torch.tensor([0.1], dtype=torch.float64)
    image = _noisy((1, 1, 20, 26), sigma)
    first = network(image, sigma)
    assert torch.equal(network(image, sigma), first)
    network.load_state_dict(_model(seed=5).state_dict())
    torch.testing.assert_close(network(image, sigma), _model(seed=5)(image, sigma))
    assert not torch.allclose(network(image, sigma), first)
    assert network(image[..., :19, :25], sigma).shape == (1, 1, 19, 25)
    torch.testing.assert_close(network(image, sigma / 2), _model(seed=5)(image, sigma / 2))
    network.gain.data *= 2  # changed behind the back of autograd
    assert not torch.allclose(network(image, sigma), _model(seed=5)(image, sigma))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("built", [True, False])
def test_inference_mode_gives_the_same_and_leaves_nothing_behind(built):
    sigma = torch.tensor([0.1], dtype=torch.float64)
    image = 60 * _noisy((1, 1, 20, 26), sigma)  # some responses lie beyond the tables
    expected = _model()(image, sigma)
    with torch.inference_mode(built):
        network = _model()
    with torch.inference_mode():
        torch.testing.assert_close(network(image.clone(), sigma.clone()), expected)
        torch.testing.assert_close(network(image.clone(), sigma.clone()), expected)
    image.requires_grad_()
    network(image, sigma).sum().backward()
    gradient, image.grad = image.grad, None
    _model()(image, sigma).sum().backward()
    torch.testing.assert_close(gradient, image.grad)


def test_threads_may_share_a_model(monkeypatch):
    monkeypatch.setattr(model, "_NODES", 33)
    shared, turns = _model(), range(12)

    def denoised(network, turn):
        sigma = torch.tensor([0.1 + turn % 6], dtype=torch.float64)
        return network(_noisy((1, 1, 10 + turn % 5, 12), sigma), sigma)

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(partial(denoised, shared), turns))
    for turn in turns:
        torch.testing.assert_close(found[turn], denoised(_model(), turn))


@pytest.mark.usefixtures("coarse")
def test_copies_are_independent():
    network, sigma = _model(), torch.tensor([0.1], dtype=torch.float64)
    image = _noisy((1, 1, 20, 26), sigma)
    before = network(image, sigma)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(image, sigma), before)
    twin.gain *= 2
    assert not torch.allclose(twin(image, sigma), before)
    assert torch.equal(network(image, sigma), before)


def test_memory_of_past_levels_and_sizes_is_bounded(monkeypatch):
    monkeypatch.setattr(model, "_NODES", 33)
    monkeypatch.setattr(model, "_CACHE_BYTES", 200_000)
    network = _model()
    for n in range(12):
        network(torch.zeros(1, 1, 10 + n, 12, dtype=torch.float64), torch.tensor([0.1 + n], dtype=torch.float64))
    assert 50_000 < network._built.nbytes <= 200_000


def _violated():
    """Numbers that break all constraints."""
    generator = torch.Generator().manual_seed(4)
    network = PoGMDM(PoGMDMConfig()).double().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    network.gain[:3] = -1.0
    return network


def test_projected_numbers_meet_the_constraints_and_stay():
    network = _violated()
    network.project_()
    weights = all_weights(network.weights)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64))
    assert float(network.low_pass.sum()) == pytest.approx(1)
    assert float(network.fan.abs().sum()) == pytest.approx(1)
    assert network.gain.min() == 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.project_()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-15)


def test_projected_numbers_are_the_nearest_allowed_ones():
    network = _violated()
    given = {name: value.clone() for name, value in network.state_dict().items()}
    network.project_()
    generator = torch.Generator().manual_seed(5)

    def density(entries):
        drawn = torch.rand(200, entries, generator=generator, dtype=torch.float64) ** 20
        return drawn / drawn.sum(1, keepdim=True)

    # The projection p of g on a convex set: (g - p) . (q - p) <= 0 for every q in it.
    def assert_nearest(before, after, others):
        assert ((others - after) @ (before - after)).max() < 1e-12

    for before, after in zip(all_weights(given["weights"]), all_weights(network.weights), strict=True):
        assert_nearest(before, after, density(125) + 0 * before)
    signs = given["fan"].sign().flatten()
    assert_nearest(given["fan"].flatten(), network.fan.flatten(), density(289) * signs)
    free = torch.randn(200, 9, generator=generator, dtype=torch.float64)
    assert_nearest(given["low_pass"], network.low_pass, free - (free.sum(1, keepdim=True) - 1) / 9)
    assert torch.equal(network.gain, given["gain"].clamp(min=0))


def test_a_weight_of_zero_has_a_finite_gradient():
    weights = torch.zeros(1, 125).requires_grad_()
    response, variance = torch.tensor([0.4]), torch.tensor([SPREAD**2])
    mixture_mean(response, weights + torch.eye(125)[62], variance).sum().backward()
    assert torch.isfinite(weights.grad).all()


def test_the_mean_of_the_mixture_is_that_of_bayes():
    weights = torch.zeros(125, dtype=torch.float64)
    weights[[0, 124]] = 0.5
    response, variance = torch.linspace(-2, 2, 41, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    expected = 0.5 * torch.tanh(0.5 * response / variance)
    torch.testing.assert_close(mixture_mean(response, weights, variance), expected, rtol=1e-9, atol=1e-9)


def test_tables_hold_the_mean_at_their_nodes():
    weights = all_weights(experts.student_weights())[None]
    variance = torch.tensor([[SPREAD**2]], dtype=torch.float64)
    tables = Tables.build(weights, variance, 101)
    nodes = torch.linspace(-1, 1, 101, dtype=torch.float64) * tables.reach[0, 0]
    expected = mixture_mean(nodes, weights, variance[0]) / variance[0]
    torch.testing.assert_close(tables.values[0, 0], expected, rtol=1e-9, atol=1e-9)
    found = tables.look_up(nodes.reshape(1, 1, 1, 1, 101), torch.tensor([0])).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match='"tight" or "published", got \'loose\''):
        PoGMDMConfig("loose")


def test_the_grid_finds_the_greatest_gain():
    blocks = shearlets.flat_low_pass(), shearlets.fan_filter()
    found, finer = (
        shearlets.spectra(*blocks, shearlets.Frequencies.of(size, blocks[0])).abs().amax((1, 2))
        for size in (model._GRID, (600, 700))
    )
    torch.testing.assert_close(found, finer, rtol=2e-3, atol=0)
