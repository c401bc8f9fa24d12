"""`spinstream train` and `spinstream priors`, as typed."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from pipelines.cli import main
from recon_core.priors import load_prior


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _blobs(count: int, edge: int = 40) -> np.ndarray:
    """Bright discs of random places and sizes."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:edge, :edge]
    places, radii = random.uniform(10, edge - 10, (count, 2)), random.uniform(4, 10, count)
    distance = np.hypot(y - places[:, :1, None], x - places[:, 1:, None])
    return (distance < radii[:, None, None]).astype(np.float32)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    np.savez(folder / "blobs.npz", images=_blobs(40))
    return folder


def test_a_folder_of_images_becomes_a_prior_with_card_and_pictures(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    result = _run(
        "train",
        "unet",
        "--data",
        images,
        "-o",
        weights,
        "--steps",
        "4",
        "--licence",
        "CC0",
        "--source",
        "Blobs; CC0; none",
    )
    assert result.exit_code == 0, result.output
    assert "PSNR at noise 0.1, denoised" in result.output
    card = (tmp_path / "mine.md").read_text()
    assert "CC0" in card
    assert "4 steps, seed 1" in card
    for picture in ("mine_curve.png", "mine_samples.png"):
        assert matplotlib.image.imread(tmp_path / picture).std() > 0
    noisy = torch.randn(40, 40, dtype=torch.complex64)
    assert load_prior(str(weights)).denoise(noisy, 0.5).isfinite().all()


def test_the_same_command_resumes(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    command = ("train", "unet", "--data", images, "-o", weights, "--steps", "2")
    assert _run(*command).exit_code == 0
    first = load_file(weights)
    assert _run(*command).exit_code == 0
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(weights).items())
    other = _run("train", "unet", "--data", images, "-o", weights, "--steps", "3")
    assert other.exit_code == 1
    assert "mine.checkpoint is of a training with other" in other.output


def test_noisy_complex_images_train_without_clean_ones(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    noise = random.standard_normal((40, 40, 40)) + 1j * random.standard_normal((40, 40, 40))
    np.save(tmp_path / "noisy.npy", (_blobs(40) + 0.1 * noise).astype(np.complex64))
    weights = tmp_path / "mine.safetensors"
    result = _run(
        "train", "unet", "--objective", "sure", "--data", tmp_path / "noisy.npy", "-o", weights, "--steps", "2"
    )
    assert result.exit_code == 0, result.output
    assert "estimated error of the denoised images" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--objective", "sure"), "blobs.npz: expected complex images, got magnitudes"),
        (("--objective", "sure", "--noise", "0.1"), "blobs.npz: expected complex images, got magnitudes"),
        (("--noise", "0.1"), "--noise is for --objective sure"),
        (("--key", "heads"), 'blobs.npz: not readable as images: no array "heads"; it holds images'),
        (("--source", "Blobs"), "expected three parts, NAME; LICENCE; CITATION"),
        (("--device", "cuda"), "no CUDA device"),
    ],
)
def test_what_cannot_be_trained_is_told(images: Path, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    result = _run("train", "unet", "--data", images, "-o", tmp_path / "mine.safetensors", "--steps", "1", *arguments)
    assert result.exit_code != 0
    assert told in result.output
    assert not (tmp_path / "mine.safetensors").exists()


def test_other_endings_than_safetensors_are_refused(images: Path, tmp_path: Path) -> None:
    result = _run("train", "unet", "--data", images, "-o", tmp_path / "mine.pth")
    assert result.exit_code == 2
    assert "ends in .safetensors" in result.output


def test_priors_lists_what_is_at_hand_and_prints_cards(images: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    _run("train", "unet", "--data", images, "-o", weights, "--steps", "1", "--summary", "Discs.")
    listed = _run("priors", weights)
    assert listed.exit_code == 0, listed.output
    for told in ("head_unet", "head_pogmdm", "head_unet_sure", "mine.safetensors", "Discs.", "MB"):
        assert told in listed.output
    assert "Learnt from" in _run("priors", "--card", "head_unet").output
    unknown = _run("priors", "--card", "head_unit")
    assert unknown.exit_code == 1
    assert "head_unet" in unknown.output


def test_files_that_are_no_priors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    result = _run("priors", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert "x.safetensors is not a prior" in result.output
