"""The whole way as a user goes it: simulate, serve in a process of its own, replay to it, look at the files."""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import main
from recon_core.metrics import nrmse

from simulated_head import series, whitened_truth

SPINSTREAM = [sys.executable, "-m", "pipelines.cli"]


def spinstream(*arguments: object) -> str:
    """In a process of its own."""
    done = subprocess.run([*SPINSTREAM, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def spinstream_here(*arguments: object) -> str:
    """In this process, which has read all modules."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module", name="address")
def _address():
    with server() as address:
        yield address


@contextmanager
def server():
    with subprocess.Popen([*SPINSTREAM, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(20) == 0


SCANS = {
    "cartesian": ["--trajectory", "cartesian", "--acceleration", 2],
    "radial": ["--trajectory", "radial", "--shots", 96],
    "spiral": ["--trajectory", "spiral", "--shots", 12, "--readout-ms", 6],
}


# Spokes and spirals leave out the corners of k-space, which hold 5 % of this head.
LIMITS = {"cartesian": 0.02, "radial": 0.07, "spiral": 0.07}


@pytest.mark.parametrize("scan", SCANS)
def test_simulated_scans_come_back_as_their_truth(tmp_path, address, scan):
    raw, out = tmp_path / "raw.h5", tmp_path / "out.h5"
    common = ["--matrix", 64, "--coils", 6, "--noise", 0.005, "--seed", 3, "--slices", 2]
    spinstream_here("simulate", raw, *common, *SCANS[scan])
    replay = ["replay", raw, "-p", "cg_sense", "-o", out, "--set", "CgSense.iterations=30"]
    text = spinstream_here(*replay, "--to", address)
    assert "4 images" in text
    expected, mask = whitened_truth(raw)
    images = series(out, 1)
    assert sorted(image.slice for image in images) == [0, 1]
    for image in images:
        found = torch.from_numpy(image.data[0, 0].astype(np.float64))
        assert nrmse(found, expected[image.slice], mask[image.slice]) < LIMITS[scan]


def test_the_server_and_the_client_give_the_same_pixels(tmp_path, address):
    """To the bit where both are processes of their own, as a user starts them."""
    raw, radial = tmp_path / "raw.h5", ["--trajectory", "radial", "--matrix", 32, "--coils", 4, "--shots", 48]
    spinstream_here("simulate", raw, *radial, "--noise", 0.01)
    spinstream("replay", raw, "-p", "cg_sense", "-o", tmp_path / "here.h5")
    spinstream("replay", raw, "-p", "cg_sense", "-o", tmp_path / "there.h5", "--to", address)
    for index in (1, 2):
        (here,), (there,) = series(tmp_path / "here.h5", index), series(tmp_path / "there.h5", index)
        np.testing.assert_array_equal(here.data, there.data)
        assert here.meta == there.meta
