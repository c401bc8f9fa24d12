import math

import pytest
import torch

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator

from analytic import complex_noise, direct_sum, grid_trajectory, random_trajectory, relative

MODELS = {
    "spiral-like": (random_trajectory((9, 8)), (9, 8)),
    "grid": (grid_trajectory((8, 9))[:, ::2], (8, 9)),
    "three-dimensional": (random_trajectory((4, 6, 5)), (4, 6, 5)),
}


@pytest.fixture(params=MODELS, name="model")
def _model(request):
    trajectory, shape = MODELS[request.param]
    return LinearModel(Encoding(sampling_operator(trajectory, shape)), complex_noise(3, *shape, seed=5))


def test_forward_weighs_with_each_coil(model):
    image = complex_noise(*model.encoding.sampling.shape)
    truth = torch.stack([direct_sum(coil * image, model.encoding.sampling.trajectory) for coil in model.coil_maps])
    assert relative(model.forward(image) - truth, truth) < 1e-4


def test_adjoint(model):
    image = complex_noise(*model.encoding.sampling.shape)
    kspace = complex_noise(*model.forward(image).shape, seed=1)
    there = torch.vdot(kspace.flatten(), model.forward(image).flatten())
    back = torch.vdot(model.adjoint(kspace).flatten(), image.flatten())
    assert abs(there - back) < 1e-5 * kspace.norm() * model.forward(image).norm()


def test_normal_is_adjoint_of_forward_for_batches(model):
    images = complex_noise(2, *model.encoding.sampling.shape)
    twice = torch.stack([model.adjoint(model.forward(image)) for image in images])
    assert relative(model.normal(images) - twice, twice) < 1e-4


def test_norm_is_the_largest_eigenvalue(model):
    pixels = math.prod(model.encoding.sampling.shape)
    identity = torch.eye(pixels, dtype=torch.complex64).view(pixels, *model.encoding.sampling.shape)
    largest = torch.linalg.eigvalsh(model.normal(identity).flatten(1))[-1].item()
    assert model.norm(torch.Generator().manual_seed(0), iterations=200) == pytest.approx(largest, rel=1e-3)
    assert model.norm(torch.Generator().manual_seed(0)) <= largest * (1 + 1e-5)


def test_norm_of_nothing_is_zero():
    sampling = sampling_operator(grid_trajectory((4, 4)), (4, 4))
    assert LinearModel(Encoding(sampling), torch.zeros(2, 4, 4, dtype=torch.complex64)).norm(torch.Generator()) == 0


def test_refuses_maps_of_another_shape():
    sampling = sampling_operator(grid_trajectory((4, 6)), (4, 6))
    with pytest.raises(ValueError, match=r"\.\.\., coil, 4, 6\].*got \[2, 6, 4\]"):
        LinearModel(Encoding(sampling), torch.zeros(2, 6, 4, dtype=torch.complex64))
