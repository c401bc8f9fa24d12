import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from recon_core.operators import memory
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import HardSegments, LowRank
from recon_core.operators.sampling import sampling_operator

from analytic import DirectSampling, complex_noise, direct_sum, grid_trajectory, random_trajectory, relative

COILS, REACH_HZ = 3, 150.0
TRAJECTORIES = {
    "anywhere": (random_trajectory((9, 8), 4, 60), (9, 8)),
    "grid": (grid_trajectory((8, 9))[:, ::2], (8, 9)),
    "three-dimensional": (random_trajectory((4, 6, 5)), (4, 6, 5)),
}


def readout_times(trajectory, start_s=4e-3):
    """15.6 ms, a little later in each shot."""
    shots, samples = trajectory.shape[1:]
    return start_s + torch.linspace(0, 15.6e-3, samples).repeat(shots, 1) + 1e-4 * torch.arange(shots)[:, None]


def random_field(*shape, seed=0):
    return REACH_HZ * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


def exact(image, maps, field, trajectory, times):
    """The imaging equation by its definition: each pixel a wave of its own, `[coil, shot, sample]`."""
    shape = image.shape
    pixels = torch.eye(image.numel(), dtype=torch.complex128).view(-1, *shape)
    waves = direct_sum(pixels, trajectory)
    waves = waves * torch.exp(-2j * math.pi * field.double().flatten()[:, None, None] * times.double())
    return torch.einsum("cp,psn->csn", (maps * image).to(torch.complex128).flatten(1), waves)


class Case:
    def __init__(self, name, functions=None, slices=(), dtype=torch.complex64):
        self.trajectory, self.shape = TRAJECTORIES[name]
        self.times = readout_times(self.trajectory)
        self.maps = complex_noise(*slices, COILS, *self.shape, seed=5, dtype=dtype)
        self.image = complex_noise(*slices, *self.shape, seed=6, dtype=dtype)
        self.field = random_field(*slices, *self.shape).to(dtype.to_real())
        precision = dtype.to_real()
        functions = functions or LowRank(self.times.to(precision), -REACH_HZ, REACH_HZ)
        self.encoding = Encoding(sampling_operator(self.trajectory.to(precision), self.shape), functions)
        self.model = LinearModel(self.encoding, self.maps, self.field)
        self.kspace = complex_noise(*slices, COILS, *self.trajectory.shape[1:], seed=7, dtype=dtype)


@pytest.fixture(params=TRAJECTORIES, name="name")
def _name(request):
    return request.param


@pytest.mark.parametrize(("error", "accuracy"), [(1e-3, 1e-3), (1e-6, 1e-5)])
def test_forward_against_the_direct_sum(name, error, accuracy):
    times = readout_times(TRAJECTORIES[name][0])
    case = Case(name, LowRank(times, -REACH_HZ, REACH_HZ, error))
    truth = exact(case.image, case.maps, case.field, case.trajectory, case.times)
    assert relative(case.model.forward(case.image) - truth, truth) < accuracy


def test_forward_with_a_segment_for_each_sample(name):
    trajectory, _ = TRAJECTORIES[name]
    times = readout_times(trajectory)[:1].expand(trajectory.shape[1:])
    case = Case(name, HardSegments(times, trajectory.shape[2]))
    truth = exact(case.image, case.maps, case.field, case.trajectory, times)
    assert relative(case.model.forward(case.image) - truth, truth) < 2e-5


def test_without_its_field_the_model_misses_the_data(name):
    case = Case(name)
    truth = exact(case.image, case.maps, case.field, case.trajectory, case.times)
    plain = LinearModel(Encoding(case.encoding.sampling), case.maps)
    assert relative(plain.forward(case.image) - truth, truth) > 0.5


def all_functions(name):
    times = readout_times(TRAJECTORIES[name][0])
    return {"low rank": LowRank(times, -REACH_HZ, REACH_HZ), "hard": HardSegments(times, 7)}


@pytest.fixture(params=["low rank", "hard"], name="case")
def _case(request, name):
    return Case(name, all_functions(name)[request.param])


def test_adjoint(case):
    forward = case.model.forward(case.image)
    there = torch.vdot(case.kspace.flatten(), forward.flatten())
    back = torch.vdot(case.model.adjoint(case.kspace).flatten(), case.image.flatten())
    assert abs(there - back) < 1e-5 * case.kspace.norm() * forward.norm()


def test_normal_is_adjoint_of_forward(case):
    twice = case.model.adjoint(case.model.forward(case.image))
    assert relative(case.model.normal(case.image) - twice, twice) < 2e-5


def test_residual_images_give_the_image_gradient(case):
    residual = case.model.residual_images(case.image, case.model.data_images(case.kspace))
    truth = 2 * case.model.adjoint(case.model.forward(case.image) - case.kspace)
    assert relative(case.model.image_gradient(residual) - truth, truth) < 2e-5


def precise(name, low_rank=True):
    """A model in double precision with nothing approximate in its sampling, and data."""
    case = Case(name, dtype=torch.complex128)
    times = case.times.double()
    functions = LowRank(times, -REACH_HZ, REACH_HZ) if low_rank else HardSegments(times, 7)
    model = LinearModel(Encoding(DirectSampling(case.trajectory, case.shape), functions), case.maps, case.field)
    return model, case.image, case.field, case.kspace


def misfit(model, image, field, kspace):
    return (model.with_field(field).forward(image) - kspace).abs().square().sum()


@pytest.mark.parametrize("low_rank", [True, False])
def test_gradients_against_finite_differences(name, low_rank):
    model, image, field, kspace = precise(name, low_rank)
    field = 0.9 * field
    model = model.with_field(field)
    residual = model.residual_images(image, model.data_images(kspace))
    towards_image = complex_noise(*image.shape, seed=8, dtype=torch.complex128)
    towards_field = random_field(*image.shape, seed=9)
    step = 1e-4

    def slope(d_image, d_field):
        ahead = misfit(model, image + step * d_image, field + step * d_field, kspace)
        behind = misfit(model, image - step * d_image, field - step * d_field, kspace)
        return ((ahead - behind) / (2 * step)).item()

    along_image = torch.vdot(model.image_gradient(residual).flatten(), towards_image.flatten()).real.item()
    along_field = (model.field_gradient(image, residual) * towards_field).sum().item()
    assert along_image == pytest.approx(slope(towards_image, 0), rel=1e-6)
    assert along_field == pytest.approx(slope(0, towards_field), rel=1e-6)


@pytest.mark.parametrize("low_rank", [True, False])
def test_gradients_are_those_of_autograd(name, low_rank):
    model, image, field, kspace = precise(name, low_rank)
    residual = model.residual_images(image, model.data_images(kspace))
    leaves = image.clone().requires_grad_(), field.clone().requires_grad_()
    by_image, by_field = torch.autograd.grad(misfit(model, *leaves, kspace), leaves)
    assert relative(model.image_gradient(residual) - by_image, by_image) < 1e-6
    assert relative(model.field_gradient(image, residual) - by_field, by_field) < 1e-6


def test_autograd_passes_through_the_normal_operator(name):
    case = Case(name)
    image = case.image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.vdot(image.flatten(), case.model.normal(image).flatten()).real, image)
    truth = 2 * case.model.normal(case.image)
    assert relative(gradient - truth, truth) < 1e-5


def test_slope_is_what_the_field_adds(name):
    model, image, field, _ = precise(name)
    step = 1e-4
    ahead, behind = model.with_field(0.9 * field + step), model.with_field(0.9 * field - step)
    difference = (ahead.expand(image) - behind.expand(image)) / (2 * step)
    torch.testing.assert_close(model.with_field(0.9 * field).slope(image), difference, atol=1e-9, rtol=1e-6)


def test_slices_of_a_batch_are_what_they_are_alone(name):
    case = Case(name, slices=(2, 3))
    data = case.model.data_images(case.kspace)
    residual = case.model.residual_images(case.image, data)
    together = {
        "forward": case.model.forward(case.image),
        "adjoint": case.model.adjoint(case.kspace),
        "normal": case.model.normal(case.image),
        "image gradient": case.model.image_gradient(residual),
        "field gradient": case.model.field_gradient(case.image, residual),
    }
    here = 1, 2
    alone = LinearModel(case.encoding, case.maps[here], case.field[here])
    residual = alone.residual_images(case.image[here], alone.data_images(case.kspace[here]))
    separate = {
        "forward": alone.forward(case.image[here]),
        "adjoint": alone.adjoint(case.kspace[here]),
        "normal": alone.normal(case.image[here]),
        "image gradient": alone.image_gradient(residual),
        "field gradient": alone.field_gradient(case.image[here], residual),
    }
    for what, value in separate.items():
        assert relative(together[what][here] - value, value) < 1e-5, what


def test_many_images_of_one_slice(name):
    case = Case(name)
    images = complex_noise(4, *case.shape, seed=9)
    torch.testing.assert_close(case.model.normal(images)[2], case.model.normal(images[2]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(case.model.forward(images)[2], case.model.forward(images[2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("coils", [1, 2])
def test_result_does_not_depend_on_the_coils_taken_at_once(case, coils, monkeypatch):
    whole = case.model.normal(case.image), case.model.forward(case.image), case.model.adjoint(case.kspace)
    pixels = case.image.numel() * case.image.itemsize
    split = LinearModel(case.encoding, case.maps, case.field)
    monkeypatch.setattr(memory, "LARGEST", coils * case.encoding.terms * pixels)
    assert split.batches().coils == coils
    normal = split.normal(case.image)
    monkeypatch.setattr(memory, "LARGEST", coils * 2**case.image.ndim * pixels)
    parts = normal, split.forward(case.image), split.adjoint(case.kspace)
    for found, expected in zip(parts, whole, strict=True):
        assert relative(found - expected, expected) < 2e-6


def test_says_when_a_single_coil_does_not_fit(case, monkeypatch):
    _ = case.encoding.kernels
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="one coil of one image needs"):
        LinearModel(case.encoding, case.maps, case.field).normal(case.image)


def test_says_when_the_kernels_do_not_fit(monkeypatch):
    case = Case("anywhere")
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="the Toeplitz kernels need"):
        case.model.normal(case.image)


def test_each_model_decides_by_the_memory_that_is_free_then(case, monkeypatch):
    one = memory.HELD * case.encoding.terms * case.image.numel() * case.image.itemsize
    _ = case.encoding.kernels
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * (one + 2**20))
    short = LinearModel(case.encoding, case.maps, case.field)
    with monkeypatch.context() as shorter:
        shorter.setattr(memory, "free_memory", lambda device: 2**40)
        assert LinearModel(case.encoding, case.maps, case.field).batches().coils == COILS
    assert short.batches().free == 2 * (one + 2**20)


def test_threads_that_ask_together_build_the_kernels_once(monkeypatch):
    case, built = Case("anywhere"), []
    build = case.encoding._build
    monkeypatch.setattr(case.encoding, "_build", lambda: (time.sleep(0.05), built.append(1), build())[-1])
    with ThreadPoolExecutor(4) as pool:
        kernels = list(pool.map(lambda _: case.encoding.kernels, range(4)))
    assert len(built) == 1
    assert all(k is kernels[0] for k in kernels)


def test_a_real_image_is_one_without_imaginary_part(case):
    real = case.image.real.contiguous()
    whole = case.model.normal(real.to(case.image.dtype))
    assert relative(case.model.normal(real) - whole, whole) < 1e-6
    plain = LinearModel(Encoding(case.encoding.sampling), case.maps)
    twice = plain.adjoint(plain.forward(real))
    assert relative(plain.normal(real) - twice, twice) < 2e-5


def test_refuses_samples_and_images_of_another_scan(case):
    with pytest.raises(ValueError, match=r"expected samples \[\.\.\., coil, shot, sample\] .* got \[1, "):
        case.model.adjoint(case.kspace[:1])
    for wrong in (case.image[..., 1:], case.image[..., :1]):
        with pytest.raises(ValueError, match="expected an image"):
            case.model.normal(wrong)
    data = case.model.data_images(case.kspace)
    with pytest.raises(ValueError, match=r"expected \[\.\.\., term, \*shape\]"):
        case.model.residual_images(case.image, case.image)
    with pytest.raises(ValueError, match=r"expected \[\.\.\., term, \*shape\]"):
        case.model.image_gradient(case.image)
    with pytest.raises(ValueError, match=r"expected \[\.\.\., term, \*shape\]"):
        case.model.field_gradient(data, case.image)


def test_norm_covers_every_slice(name):
    case = Case(name, slices=(2,))
    norms = [
        LinearModel(case.encoding, maps, field).norm(torch.Generator().manual_seed(0), 100)
        for maps, field in zip(case.maps, case.field, strict=True)
    ]
    assert case.model.norm(torch.Generator().manual_seed(0), 100) == pytest.approx(max(norms), rel=1e-2)


def test_refuses_a_field_of_another_shape(name):
    case = Case(name)
    with pytest.raises(ValueError, match="expected a field map"):
        LinearModel(case.encoding, case.maps, case.field[:-1])


def test_refuses_a_field_out_of_range(name):
    case = Case(name)
    with pytest.raises(ValueError, match="reaches from"):
        case.model.with_field(case.field + 200)


def test_refuses_a_field_without_functions_of_time_and_these_without_a_field(name):
    case = Case(name)
    plain = Encoding(case.encoding.sampling)
    with pytest.raises(ValueError, match="need each other"):
        LinearModel(plain, case.maps, case.field)
    with pytest.raises(ValueError, match="need each other"):
        LinearModel(case.encoding, case.maps)
    with pytest.raises(ValueError, match="no derivative"):
        LinearModel(plain, case.maps).slope(case.image)


def test_refuses_functions_of_other_samples(name):
    trajectory, shape = TRAJECTORIES[name]
    with pytest.raises(ValueError, match="shots and samples"):
        Encoding(sampling_operator(trajectory, shape), LowRank(torch.linspace(0, 1e-2, 7)[None], -10, 10))


def test_memory_held_grows_with_what_is_built(name):
    case = Case(name)
    before = case.encoding.nbytes
    case.model.normal(case.image)
    assert case.encoding.nbytes >= before + case.encoding.kernels.nbytes > before
