"""A simulated head on its way through the diffusion solver, against its truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipelines.cli import main
from recon_core.metrics import nrmse

from simulated_head import series, whitened_truth


def spinstream(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A noisy Cartesian scan of every third line."""
    folder = tmp_path_factory.mktemp("head")
    head = ["--matrix", 64, "--coils", 8, "--noise", 0.08, "--seed", 3]
    spinstream("simulate", folder / "raw.h5", "--trajectory", "cartesian", "--acceleration", 3, *head)
    for pipeline in ("cg_sense", "diffusion"):
        spinstream("replay", folder / "raw.h5", "-p", pipeline, "-o", folder / f"{pipeline}.h5")
    return folder


def physical(image) -> torch.Tensor:
    return torch.from_numpy(image.data[0, 0].astype(np.float64)) / float(image.meta["ImageScaleFactor"])


def test_it_is_nearer_to_the_truth_than_least_squares(folder):
    truth, mask = whitened_truth(folder / "raw.h5")
    errors = {}
    for pipeline in ("cg_sense", "diffusion"):
        (image,) = series(folder / f"{pipeline}.h5", 1)
        errors[pipeline] = float(nrmse(physical(image), truth[0], mask[0]))
    assert errors["diffusion"] < 0.75 * errors["cg_sense"]


def test_the_deviation_arrives_as_numbers_in_the_units_of_the_image(folder):
    """It need not be exact; pixels without their factor would be off by far more."""
    truth, mask = whitened_truth(folder / "raw.h5")
    (image,), (deviation,) = series(folder / "diffusion.h5", 1), series(folder / "diffusion.h5", 4)
    assert deviation.meta["DataRole"] == "Quantitative"
    assert deviation.data.dtype == np.float32
    found, error = physical(deviation)[mask[0]], (physical(image) - truth[0]).abs()[mask[0]]
    assert 0.3 < found.square().mean().sqrt() / error.square().mean().sqrt() < 1.5


def test_the_preview_comes_first_and_the_history_says_what_was_done(folder):
    (preview,), (image,) = (series(folder / "diffusion.h5", index) for index in (2, 1))
    assert preview.image_index == image.image_index == 1
    history = image.meta["ImageProcessingHistory"]
    assert any("decomposed_diffusion with head_unet_large, 4 samples, 20 of 20 steps in " in line for line in history)
    assert "seed 0" in history
