"""Everything gives on the GPU what it gives on the CPU."""

import pytest
import torch

from recon_core.calibration.compression import compression_matrix
from recon_core.calibration.espirit import espirit
from recon_core.calibration.low_resolution import calibration_kspace
from recon_core.calibration.noise import noise_covariance, whitening_matrix
from recon_core.calibration.walsh import walsh
from recon_core.density import pipe_menon
from recon_core.fourier import fft_centred
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.solvers.cg_sense import cg_sense

from analytic import complex_noise, grid_trajectory, random_trajectory, relative, ring_of_coils, smooth_head

DEVICE = torch.device("cuda")
TRAJECTORIES = {
    "nufft": (random_trajectory((20, 18), 40, 50), (20, 18)),
    "grid": (grid_trajectory((20, 18)), (20, 18)),
    "three-dimensional": (random_trajectory((6, 8, 7)), (6, 8, 7)),
}

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def require_same(there, here, accuracy=1e-4):
    assert there.device.type == DEVICE.type
    assert relative(there.cpu() - here, here) < accuracy


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_sampling_density_and_solver(name):
    trajectory, shape = TRAJECTORIES[name]
    maps, image = complex_noise(3, *shape), complex_noise(*shape, seed=1)
    here = LinearModel(Encoding(sampling_operator(trajectory, shape)), maps)
    there = LinearModel(Encoding(sampling_operator(trajectory.to(DEVICE), shape)), maps.to(DEVICE))
    kspace = here.forward(image)
    require_same(there.forward(image.to(DEVICE)), kspace)
    require_same(there.adjoint(kspace.to(DEVICE)), here.adjoint(kspace))
    require_same(there.normal(image.to(DEVICE)), here.normal(image))
    require_same(pipe_menon(there.encoding.sampling), pipe_menon(here.encoding.sampling), 1e-2)
    require_same(cg_sense(there, kspace.to(DEVICE), 0.01, 10).image, cg_sense(here, kspace, 0.01, 10).image, 2e-2)


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_off_resonance(name):
    trajectory, shape = TRAJECTORIES[name]
    times = torch.linspace(3e-3, 18e-3, trajectory.shape[2]).expand(trajectory.shape[1:])
    maps, image = complex_noise(2, 3, *shape), complex_noise(2, *shape, seed=1)
    field = 200 * torch.rand(2, *shape, generator=torch.Generator().manual_seed(2)) - 100

    def model(device):
        sampling = sampling_operator(trajectory.to(device), shape)
        encoding = Encoding(sampling, LowRank(times.to(device), -100, 100))
        return LinearModel(encoding, maps.to(device), field.to(device))

    here, there = model("cpu"), model(DEVICE)
    kspace, data = here.forward(image), here.data_images(here.forward(2 * image))
    require_same(there.forward(image.to(DEVICE)), kspace)
    require_same(there.adjoint(kspace.to(DEVICE)), here.adjoint(kspace))
    require_same(there.normal(image.to(DEVICE)), here.normal(image))
    residual = here.residual_images(image, data)
    require_same(there.residual_images(image.to(DEVICE), data.to(DEVICE)), residual)
    slope = there.field_gradient(image.to(DEVICE), residual.to(DEVICE))
    require_same(slope, here.field_gradient(image, residual))


def test_coil_maps():
    images = (ring_of_coils(24, 4) * smooth_head(24)).to(torch.complex64)
    kspace, trajectory = fft_centred(images, (1, 2)), grid_trajectory((24, 24))
    centre = calibration_kspace(kspace, trajectory, (16, 16))
    require_same(calibration_kspace(kspace.to(DEVICE), trajectory.to(DEVICE), (16, 16)), centre)
    require_same(espirit(centre.to(DEVICE), (24, 24)).abs(), espirit(centre, (24, 24)).abs(), 1e-2)
    require_same(walsh(images.to(DEVICE)), walsh(images), 1e-2)


def test_noise_and_compression():
    noise = complex_noise(6, 200)
    covariance = noise_covariance(noise)
    require_same(noise_covariance(noise.to(DEVICE)), covariance)
    require_same(whitening_matrix(covariance.to(DEVICE)), whitening_matrix(covariance))
    require_same(compression_matrix(noise.to(DEVICE), 0.9), compression_matrix(noise, 0.9))
