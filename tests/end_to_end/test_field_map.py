"""A field map in a file on its way into the image."""

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import main
from recon_core.metrics import nrmse


def spinstream(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A spiral scan of a head in a field of up to 100 Hz, with its map as a file."""
    folder = tmp_path_factory.mktemp("scan")
    size = ["--matrix", 64, "--coils", 4, "--shots", 8, "--slices", 2, "--readout-ms", 10]
    spinstream("simulate", folder / "raw.h5", "--trajectory", "spiral", *size, "--noise", 0, "--b0", 100)
    with h5py.File(folder / "raw.h5") as file:
        np.savez(folder / "map.npz", file["truth/field_map_hz"][()])
    return folder


def error(scan, tmp_path, *settings: str) -> float:
    """Of the images against the truth."""
    more = [word for setting in settings for word in ("--set", setting)]
    spinstream("replay", scan / "raw.h5", "-p", "cg_sense", "-o", tmp_path / "out.h5", "--overwrite", *more)
    with h5py.File(tmp_path / "out.h5") as file, h5py.File(scan / "raw.h5") as raw:
        found = torch.from_numpy(file["dataset/image_1/data"][:, 0, 0].astype(float))
        truth, mask = (torch.from_numpy(raw[f"truth/{name}"][()]) for name in ("image", "mask"))
    return nrmse(found, truth.abs().double(), mask)


def test_the_map_takes_the_blur_away_and_the_wrong_sign_adds_to_it(scan, tmp_path):
    without = error(scan, tmp_path)
    file = f"FieldMap.file={scan / 'map.npz'}"
    assert error(scan, tmp_path, file) < 0.4 * without
    assert error(scan, tmp_path, file, "FieldMap.field_sign=+") > 1.2 * without
