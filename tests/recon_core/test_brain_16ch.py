"""Calibration and CG-SENSE on a measured brain."""

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from recon_core.calibration.espirit import espirit
from recon_core.calibration.low_resolution import calibration_kspace
from recon_core.calibration.noise import whitening_matrix
from recon_core.calibration.walsh import walsh
from recon_core.metrics import nrmse
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.solvers.cg_sense import cg_sense

from analytic import relative

CASE = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cases" / "brain_16ch"
SHAPE = (128, 128)

pytestmark = pytest.mark.skipif(not CASE.exists(), reason="needs the shared cases")


@pytest.fixture(scope="module", name="stored")
def _stored():
    with np.load(CASE / "brain_invivo_local16ch_maps.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in ("csm_walsh", "noise_cov", "mask")}


@pytest.fixture(scope="module", name="scan")
def _scan(stored):
    """Prewhitened k-space, and the trajectory with its axes in the order of the stored maps."""
    dataset = ismrmrd.Dataset(str(CASE / "brain_invivo_local16ch.h5"), "dataset", create_if_needed=False)
    lines = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    dataset.close()
    kspace = torch.from_numpy(np.stack([line.data for line in lines], 1))
    trajectory = torch.from_numpy(np.stack([line.traj for line in lines])).permute(2, 0, 1).contiguous()
    return torch.einsum("ij,jab->iab", whitening_matrix(stored["noise_cov"]), kspace), trajectory


def unexplained(maps, images, mask):
    """The part of the coil images that is not an image times the maps."""
    combined = (maps.conj() * images).sum(0)
    return relative((images - maps * combined)[:, mask], images[:, mask])


def test_maps_explain_the_data_as_well_as_the_stored_ones(stored, scan):
    kspace, trajectory = scan
    images, mask = sampling_operator(trajectory, SHAPE).adjoint(kspace), stored["mask"]
    walsh_maps = torch.einsum("ij,jab->iab", whitening_matrix(stored["noise_cov"]), stored["csm_walsh"])
    walsh_maps = walsh_maps / walsh_maps.abs().square().sum(0).sqrt()
    best = unexplained(walsh_maps, images, mask)
    noise_alone = (15 * mask.sum() / images[:, mask].abs().square().sum()).sqrt()
    assert noise_alone < best < 0.12
    maps = espirit(calibration_kspace(kspace, trajectory, (24, 24)), SHAPE, crop=0.8)
    assert unexplained(maps, images, mask) < 1.05 * best
    assert unexplained(walsh(images), images, mask) < 1.02 * best


def test_a_third_of_the_lines_give_the_image_of_all(stored, scan):
    kspace, trajectory = scan
    maps = espirit(calibration_kspace(kspace, trajectory, (24, 24)), SHAPE, crop=0.8)
    whole = LinearModel(Encoding(sampling_operator(trajectory, SHAPE)), maps).adjoint(kspace)
    model = LinearModel(Encoding(sampling_operator(trajectory[:, ::3], SHAPE)), maps)
    result = cg_sense(model, kspace[:, ::3], 1e-3, 30, 1e-4)
    aliased = model.adjoint(kspace[:, ::3])
    assert nrmse(result.image, whole, stored["mask"]) < 0.06
    assert nrmse(aliased, whole, stored["mask"]) > 0.2
