"""Real and independently simulated raw data through the shipped pipelines; skipped where the data are not at hand."""

from contextlib import closing
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from recon_core.calibration.field_map import field_from_echoes
from recon_core.disc_edge import disc_edge
from recon_core.fourier import fft_centred, ifft_centred
from recon_core.metrics import nrmse

CASES = Path(__file__).resolve().parents[3] / "shared" / "data" / "cases"


def reconstruct(case: str | Path, pipeline: str, tmp_path: Path, **settings: str) -> dict[str, list[torch.Tensor]]:
    """Complex images `[y, x]` by series description's last word, in the order in which they came."""
    path = CASES / case
    if not path.exists():
        pytest.skip(f"{case} is not at hand")
    images: dict[str, list[torch.Tensor]] = {}

    def keep(image):
        kind = image.meta["SeriesDescription"].split("_")[-1]
        images.setdefault(kind, []).append(torch.from_numpy(image.data[0, 0].copy()))

    parameters = {"ImageExport.data_type": "complex64", **settings}
    job = Replay(raw=path, pipeline=pipeline, parameters=parameters)
    with RawFile(path) as raw:
        site = Site(device="cpu", state_folder=tmp_path)
        replay_here(job, raw, site, keep, lambda text: None, lambda items, total: items)
    return images


def stored(case: str, name: str) -> torch.Tensor:
    """An array of the case's own truth; its first axis is x, ours is y."""
    if not (CASES / case).exists():
        pytest.skip(f"{case} is not at hand")
    return torch.from_numpy(np.load(CASES / case)[name]).transpose(-1, -2)


def test_brain_16ch_cg_sense_equals_the_stored_combined_image(tmp_path):
    images = reconstruct("brain_16ch/brain_invivo_local16ch.h5", "cg_sense", tmp_path)
    maps = "brain_16ch/brain_invivo_local16ch_maps.npz"
    reference, mask = stored(maps, "image_combined"), stored(maps, "mask")
    (image,) = images["image"]
    # Walsh's and ESPIRiT's maps differ in phase and shading, so magnitudes are compared.
    assert nrmse(image.abs(), reference.abs(), mask) < 0.01


def test_brain_body_coil_reconstructs(tmp_path):
    images = reconstruct("brain_16ch/brain_invivo_body2ch.h5", "preview", tmp_path)
    mask = stored("brain_16ch/brain_invivo_local16ch_maps.npz", "mask")
    (image,) = images["preview"]
    inside, outside = image.abs()[mask].mean(), image.abs()[~mask].mean()
    assert inside > 4 * outside


def test_simulated_spiral_equals_its_truth(tmp_path):
    """JEMRIS' truth lies half a pixel off the FFT grid."""
    case = "spiral_b0_simulated"
    images = reconstruct(f"{case}/spiralout_clean_slc90.h5", "cg_sense", tmp_path)
    truth = stored(f"{case}/truth_slc90.npz", "image")
    (image,) = images["image"]
    assert nrmse(half_pixel_shift(image).abs(), truth) < nrmse(image.abs(), truth)
    assert nrmse(half_pixel_shift(image).abs(), truth) < 0.13


def test_the_true_field_map_makes_the_simulated_spiral_as_good_as_without_a_field(tmp_path):
    """On the truth's own grid, half a pixel off ours: the field of view is shifted in the raw data, not the map."""
    case = "spiral_b0_simulated"
    clean, field = (shifted(f"{case}/spiralout_{name}_slc90.h5", tmp_path) for name in ("clean", "Susc70Mhz"))
    truth = stored(f"{case}/truth_slc90.npz", "image")
    np.savez(tmp_path / "map.npz", stored(f"{case}/truth_slc90.npz", "b0_hz_Susc70Mhz").numpy())
    settings = {"FieldMap.file": str(tmp_path / "map.npz"), "FieldMap.field_sign": "+"}
    without, without_map, with_map = (
        nrmse(reconstruct(path, "cg_sense", tmp_path, **used)["image"][0].abs(), truth)
        for path, used in ((clean, {}), (field, {}), (field, settings))
    )
    assert with_map < 1.1 * without
    assert without_map > 1.8 * without


def test_the_measured_field_map_makes_the_spiral_phantom_round_and_sharp(tmp_path):
    """The spiral's centre frequency is not the map's: with 450 Hz added, coils and samples agree best with each other.

    (benchmarks/field_map_cases.py searches for it by the residual of the samples.)
    """
    case = "spiral_phantom_20ch"
    path = f"{case}/acr_shimoff_20ch_b0map.npz"
    plain = {"CgSense.iterations": "30", "CoilMaps.calibration": "48"}
    (before,) = reconstruct(f"{case}/acr_shimoff_20ch.h5", "cg_sense", tmp_path, **plain)["image"]
    field, mask = stored(path, "b0_hz").numpy(), stored(path, "mask").numpy()
    np.savez(tmp_path / "map.npz", field_map_hz=field, mask=mask)
    with_map = {"FieldMap.file": str(tmp_path / "map.npz"), "FieldMap.field_sign": "+", "FieldMap.offset": "450"}
    (after,) = reconstruct(f"{case}/acr_shimoff_20ch.h5", "cg_sense", tmp_path, **plain, **with_map)["image"]
    blurred, sharp = (disc_edge(x.abs(), (95.5, 95.5), 47, leave_out_deg=(250, 300)) for x in (before, after))
    assert sharp.out_of_round < 0.5 * blurred.out_of_round
    assert sharp.sharpness > 1.3 * blurred.sharpness


def shifted(case: str, folder: Path) -> Path:
    """A copy of a raw data file whose field of view lies half a pixel further in both axes."""
    source = CASES / case
    if not source.exists():
        pytest.skip(f"{case} is not at hand")
    target = folder / source.name
    with closing(ismrmrd.Dataset(source, "dataset", False)) as old, closing(ismrmrd.Dataset(target, "dataset")) as new:
        xml = old.read_xml_header()
        new.write_xml_header(xml)
        matrix = ismrmrd.xsd.CreateFromDocument(xml).encoding[0].encodedSpace.matrixSize
        for number in range(old.number_of_acquisitions()):
            line = old.read_acquisition(number)
            line.data[:] *= np.exp(1j * np.pi * (line.traj[:, 0] / matrix.x + line.traj[:, 1] / matrix.y))
            new.append_acquisition(line)
    return target


def half_pixel_shift(image: torch.Tensor) -> torch.Tensor:
    """The image on a grid that lies half a pixel further in both axes."""
    y, x = (torch.arange(n) - n // 2 for n in image.shape)
    ramp = torch.exp(1j * torch.pi * (y[:, None] / len(y) + x / len(x)))
    return ifft_centred(fft_centred(image, (-2, -1)) * ramp, (-2, -1))


def test_spiral_phantom_is_a_disc(tmp_path):
    images = reconstruct("spiral_phantom_20ch/acr_shimoff_20ch.h5", "cg_sense", tmp_path)
    mask = stored("spiral_phantom_20ch/acr_shimoff_20ch_b0map.npz", "mask")
    for kind in ("preview", "image"):
        (image,) = images[kind]
        assert image.abs()[mask].mean() > 5 * image.abs()[~mask].mean(), kind


def test_three_echoes_give_three_images_equal_to_the_stored(tmp_path):
    images = reconstruct("gre_3echo_phantom/02_GRE_3echoes.h5", "cg_sense", tmp_path)
    truth = "gre_3echo_phantom/02_GRE_3echoes_b0map.npz"
    references, mask = stored(truth, "image"), stored(truth, "mask")
    assert len(images["image"]) == len(images["preview"]) == 3
    for image, reference in zip(images["image"], references, strict=True):
        assert nrmse(image.abs(), reference.abs(), mask) < 1e-3


ALIAS_HZ = 200.0  # 1 / (echo 2 - echo 1)


def test_the_field_of_two_echoes_is_the_stored_one_but_for_aliases_that_the_third_echo_refutes(tmp_path):
    """The stored map, of the opposite sign, was made from two echoes, which leave multiples of 200 Hz open.

    It took another multiple in three small pieces beside the phantom's body. There the third echo, which it did not
    use, agrees with ours.
    """
    case = "gre_3echo_phantom/02_GRE_3echoes"
    settings = {"FieldMap.echoes": "2", "FieldMap.smoothing": "0", "CgSense.iterations": "1"}
    (found,) = reconstruct(f"{case}.h5", "field_map", tmp_path, **settings)["field map"]
    truth, mask = -stored(f"{case}_b0map.npz", "b0_hz"), stored(f"{case}_b0map.npz", "mask")
    aliases = ((found - truth) / ALIAS_HZ).round()
    other = mask & (aliases != 0)
    assert other.sum() < 0.01 * mask.sum()
    assert rms((found - truth)[mask & ~other]) < 2
    assert rms((found - truth - ALIAS_HZ * aliases)[mask]) < 2
    assert rms((-found - truth)[mask & ~other]) > 20
    _, second, third = stored(f"{case}_b0map.npz", "image")
    product = (third * second.conj())[other]
    ours, theirs = (
        float((product * torch.exp(2j * torch.pi * field[other] * 6e-3)).sum().real / product.abs().sum())
        for field in (found, truth)
    )
    assert ours > 0.9
    assert theirs < 0.4


def test_three_echoes_give_the_same_multiples_as_two():
    path = "gre_3echo_phantom/02_GRE_3echoes_b0map.npz"
    echoes, mask = stored(path, "image")[:, None], stored(path, "mask")
    times = (4.0062e-3, 9.0062e-3, 15.0062e-3)
    two, three = (field_from_echoes(echoes[:number], times[:number]) for number in (2, 3))
    assert three.resolved
    assert not two.resolved
    both = mask & (two.regions > 0) & (three.regions > 0)
    assert both.sum() > 0.99 * mask.sum()
    assert (((three.field_hz - two.field_hz)[both]).abs() > ALIAS_HZ / 2).sum() < 10


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())
