"""Files made by the tools of the ISMRMRD project, with the truth that they store beside the data."""

import shutil
import subprocess

import h5py
import pytest
import torch

from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from recon_core.metrics import nrmse

GENERATE = "ismrmrd_generate_cartesian_shepp_logan"

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which(GENERATE) is None, reason="ismrmrd-tools are not installed"),
]


def complex_of(dataset: h5py.Dataset) -> torch.Tensor:
    return torch.complex(torch.from_numpy(dataset[()]["real"]), torch.from_numpy(dataset[()]["imag"]))


@pytest.mark.parametrize(
    "options",
    [[], ["-C"], ["-C", "-k"], ["-C", "-a", "2", "-w", "24", "-r", "2"]],
    ids=["no noise scan", "noise scan", "trajectory in the stream", "R = 2"],
)
def test_shepp_logan(tmp_path, options):
    path = tmp_path / "raw.h5"
    subprocess.run([GENERATE, "-m", "128", "-c", "8", "-n", "0.001", "-o", str(path), *options], check=True)
    with h5py.File(path) as file:
        phantom, maps = complex_of(file["dataset/phantom"])[0], complex_of(file["dataset/csm"])[0]
    expected = phantom.abs() * maps.norm(dim=0)
    images: list[torch.Tensor] = []

    def keep(image):
        if "preview" not in image.meta["SeriesDescription"]:
            images.append(torch.from_numpy(image.data[0, 0].copy()).abs())

    with RawFile(path) as raw:
        job = Replay(raw=path, pipeline="cg_sense", parameters={"ImageExport.data_type": "float32"})
        replay_here(job, raw, Site(device="cpu", state_folder=tmp_path), keep, lambda text: None, lambda i, total: i)
    assert images
    for image in images:
        assert nrmse(image, expected) < 0.03
