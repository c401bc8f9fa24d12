"""Simulated scans: what other readers find in the file, and that the data are those of the truth."""

import math
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import which

import h5py
import ismrmrd
import nibabel
import numpy as np
import pytest
import torch
from ismrmrd import xsd

from gadgets.header_trajectory import in_plane_trajectory
from pipelines.errors import FileError, SpinstreamError
from pipelines.simulate import SimulationSettings, simulate
from pipelines.slice_source import SliceSource
from recon_core.simulation import exact_signal

SPIRAL = SimulationSettings(matrix=(32, 40), coils=3, shots=6, readout_ms=2.4, b0="60", noise=0, slices=2, seed=5)
RADIAL = SimulationSettings(trajectory="radial", matrix=(32, 32), coils=3, shots=9, acceleration=2, noise=0)
CARTESIAN = SimulationSettings(trajectory="cartesian", matrix=(64, 32), coils=4, noise=0)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Simulates once per settings; gives header, acquisitions, truth."""
    folder, made = tmp_path_factory.mktemp("scans"), {}

    def read(settings: SimulationSettings):
        if settings not in made:
            path = folder / f"{len(made)}.h5"
            simulate(path, settings)
            made[settings] = (*contents(path), path)
        return made[settings]

    return read


def contents(path: Path):
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        header = xsd.CreateFromDocument(dataset.read_xml_header())
        acquisitions = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    with h5py.File(path) as file:
        truth = {name: torch.from_numpy(file["truth"][name][()]) for name in file["truth"]}
    return header, acquisitions, truth


def imaging(acquisitions):
    return [a for a in acquisitions if not a.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]


@pytest.mark.parametrize("settings", [SPIRAL, RADIAL], ids=["spiral", "radial"])
def test_data_are_the_exact_signal_of_the_truth(scan, settings):
    header, acquisitions, truth, _ = scan(settings)
    echo_time = header.sequenceParameters.TE[0] * 1e-3
    for item in acquisitions:
        times = echo_time + (np.arange(item.number_of_samples) - item.center_sample) * item.sample_time_us * 1e-6
        trajectory = torch.from_numpy(item.traj[:, ::-1].T.copy()).double()  # MRD has kx first
        s = item.idx.slice
        field = truth["field_map_hz"][s].double()
        image, maps = truth["image"][s].to(torch.complex128), truth["coil_maps"][s].to(torch.complex128)
        expected = exact_signal(image, maps, field, trajectory[:, None], torch.from_numpy(times))[:, 0]
        error = torch.from_numpy(item.data) - expected
        assert error.norm() < 1e-5 * expected.norm()


def test_cartesian_data_transform_to_the_truth(scan):
    _, acquisitions, truth, _ = scan(CARTESIAN)
    kspace = np.zeros((4, 64, 64), dtype=np.complex64)
    for item in acquisitions:
        assert item.trajectory_dimensions == 0
        kspace[:, item.idx.kspace_encode_step_1] = item.data
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    expected = np.zeros((4, 64, 64), dtype=np.complex64)
    expected[:, :, 16:48] = truth["coil_maps"][0] * truth["image"][0]
    np.testing.assert_allclose(image, expected, atol=2e-6)


@pytest.mark.peers
@pytest.mark.skipif(not which("ismrmrd_recon_cartesian_2d"), reason="needs ismrmrd-tools")
def test_ismrmrd_tools_reconstruct_the_truth(tmp_path):
    raw = tmp_path / "raw.h5"
    simulate(raw, replace(CARTESIAN, noise=0.001))
    subprocess.run(["ismrmrd_recon_cartesian_2d", raw], check=True, capture_output=True, timeout=60)
    with h5py.File(raw) as file:
        found, truth = file["dataset/cpp/data"][0, 0, 0], abs(file["truth/image"][0])
    assert found.shape == truth.shape
    scale = (found * truth).sum() / (truth**2).sum()
    assert np.linalg.norm(found / scale - truth) < 0.01 * np.linalg.norm(truth)


@pytest.mark.parametrize("settings", [SPIRAL, RADIAL, replace(SPIRAL, dwell_us=2.7, slices=1)], ids=repr)
def test_the_header_describes_the_trajectory_of_the_stream(scan, settings):
    header, acquisitions, *_ = scan(settings)
    described = in_plane_trajectory(header.encoding[0])
    for item in acquisitions:
        positions = described(item.idx.kspace_encode_step_1, item.number_of_samples, item.center_sample)
        np.testing.assert_allclose(positions, item.traj, atol=1e-4)


def test_spirals_have_the_readout_asked_for_and_fill_k_space(scan):
    _, acquisitions, *_ = scan(SPIRAL)
    for item in acquisitions:
        assert item.traj.shape == (600, 2)
        assert (item.traj[0] == 0).all()
        assert item.sample_time_us == 4
        radius = np.hypot(*(item.traj[-1] / (40, 32)))
        assert 0.499 < radius <= 0.5
    assert [a.idx.kspace_encode_step_1 for a in acquisitions[:6]] == list(range(6))


def test_acceleration_keeps_every_nth_shot_of_the_full_trajectory(scan):
    header, acquisitions, *_ = scan(RADIAL)
    assert [a.idx.kspace_encode_step_1 for a in acquisitions] == [0, 2, 4, 6, 8]
    encoding = header.encoding[0]
    assert encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 == 2
    assert encoding.encodingLimits.kspace_encoding_step_1.maximum == 8
    full = scan(replace(RADIAL, acceleration=1))[1]
    np.testing.assert_array_equal(acquisitions[3].traj, full[6].traj)
    np.testing.assert_allclose(acquisitions[3].data, full[6].data, atol=1e-5)


def test_undersampled_cartesian_scans_have_a_calibration_region(scan):
    header, acquisitions, *_ = scan(replace(CARTESIAN, acceleration=3))
    flag = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    calibration = [a.idx.kspace_encode_step_1 for a in acquisitions if a.isFlagSet(flag)]
    others = [a.idx.kspace_encode_step_1 for a in acquisitions if not a.isFlagSet(flag)]
    assert calibration == list(range(20, 44))
    assert others == [*range(0, 20, 3), *range(45, 64, 3)]
    assert header.encoding[0].parallelImaging.calibrationMode == xsd.calibrationModeType.EMBEDDED
    assert header.encoding[0].encodingLimits.kspace_encoding_step_1.center == 32


def test_the_header_holds_what_readers_need(scan):
    header, acquisitions, *_ = scan(CARTESIAN)
    encoding = header.encoding[0]
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    assert (encoded.matrixSize.x, encoded.matrixSize.y, encoded.matrixSize.z) == (64, 64, 1)
    assert (recon.matrixSize.x, recon.matrixSize.y, recon.matrixSize.z) == (32, 64, 1)
    assert encoded.fieldOfView_mm.x == 2 * recon.fieldOfView_mm.x == recon.fieldOfView_mm.y == 220
    assert encoding.trajectory == xsd.trajectoryType.CARTESIAN
    assert header.acquisitionSystemInformation.receiverChannels == 4
    assert header.measurementInformation.patientPosition == xsd.patientPositionType.HFS
    assert header.experimentalConditions.H1resonanceFrequency_Hz > 0
    other = scan(replace(CARTESIAN, acceleration=3))[0]
    assert header.measurementInformation.measurementID != other.measurementInformation.measurementID
    assert {a.center_sample for a in acquisitions} == {32}
    assert header.sequenceParameters.TE[0] == pytest.approx(2 + 32 * 4e-3)


def test_slices_and_repetitions_are_counted_flagged_and_placed(scan):
    settings = replace(RADIAL, matrix=(16, 16), slices=2, repetitions=3, noise=0.1)
    _, acquisitions, *_ = scan(settings)
    lines = imaging(acquisitions)
    assert [(a.idx.repetition, a.idx.slice) for a in lines[::5]] == [(r, s) for r in range(3) for s in range(2)]
    position = {ismrmrd.ACQ_FIRST_IN_SLICE: range(0, 30, 5), ismrmrd.ACQ_LAST_IN_SLICE: range(4, 30, 5)}
    position |= {ismrmrd.ACQ_FIRST_IN_REPETITION: (0, 10, 20), ismrmrd.ACQ_LAST_IN_REPETITION: (9, 19, 29)}
    position[ismrmrd.ACQ_LAST_IN_MEASUREMENT] = (29,)
    for flag, where in position.items():
        assert [n for n, a in enumerate(lines) if a.isFlagSet(flag)] == list(where)
    assert [list(a.position) for a in lines[:10:5]] == [[0, 0, -3], [0, 0, 3]]
    axes = np.array([lines[0].read_dir, lines[0].phase_dir, lines[0].slice_dir])
    np.testing.assert_array_equal(axes, np.eye(3))
    assert not np.array_equal(lines[0].data, lines[10].data)  # other noise in every repetition


def test_time_stamps_run_with_the_repetition_time(scan):
    header, acquisitions, *_ = scan(SPIRAL)
    stamps = np.array([a.acquisition_time_stamp for a in acquisitions]) * 2.5
    tr = header.sequenceParameters.TR[0]
    assert tr > header.sequenceParameters.TE[0] + 2.4
    np.testing.assert_allclose(stamps, tr * np.arange(len(stamps)), atol=1.25)
    assert "siemens" in header.acquisitionSystemInformation.systemVendor.lower()  # ticks of 2.5 ms


NOISY = replace(CARTESIAN, coils=3, matrix=(64, 64), noise=0.2)


def test_noise_is_as_strong_as_asked_for(scan):
    _, acquisitions, truth, _ = scan(NOISY)
    clean = scan(replace(NOISY, noise=0))[1]
    noise = np.concatenate([a.data - b.data for a, b in zip(imaging(acquisitions), clean, strict=True)], axis=1)
    image = truth["image"].abs().double()
    rms = image[truth["mask"]].square().mean().sqrt()
    assert np.mean(abs(noise) ** 2) == pytest.approx(float(0.2 * rms) ** 2, rel=0.03)
    found = noise @ noise.conj().T / noise.shape[1]
    expected = truth["noise_covariance"].numpy()
    standard_error = abs(expected).max() / math.sqrt(noise.shape[1])
    assert abs(found - expected).max() < 5 * standard_error
    assert abs(expected[0, 1]) > 5 * standard_error


def test_the_noise_scan_tells_the_noise_of_the_data(scan):
    header, acquisitions, truth, _ = scan(NOISY)
    (noise,) = [a for a in acquisitions if a.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert noise is acquisitions[0]
    ratio = header.acquisitionSystemInformation.relativeReceiverNoiseBandwidth
    assert 0 < ratio < 1
    assert noise.sample_time_us != acquisitions[1].sample_time_us
    # Kellman and McVeigh: white noise through a filter of relative bandwidth `ratio`.
    scale = acquisitions[1].sample_time_us / noise.sample_time_us * ratio
    found = noise.data @ noise.data.conj().T / noise.number_of_samples
    expected = truth["noise_covariance"].numpy() * scale
    assert abs(found - expected).max() < 5 * abs(expected).max() / math.sqrt(noise.number_of_samples)


def test_without_noise_there_is_no_noise_scan(scan):
    assert len(imaging(scan(CARTESIAN)[1])) == len(scan(CARTESIAN)[1]) == 64


def test_truth_says_what_it_is(scan):
    _, _, truth, path = scan(SPIRAL)
    assert {name: (str(t.dtype), tuple(t.shape)) for name, t in truth.items()} == {
        "image": ("torch.complex64", (2, 32, 40)),
        "field_map_hz": ("torch.float32", (2, 32, 40)),
        "coil_maps": ("torch.complex64", (2, 3, 32, 40)),
        "mask": ("torch.bool", (2, 32, 40)),
        "noise_covariance": ("torch.complex64", (3, 3)),
    }
    torch.testing.assert_close(truth["coil_maps"].abs().square().sum(1), torch.ones(2, 32, 40))
    inside = truth["field_map_hz"][truth["mask"]].abs()
    assert 0.98 < (inside <= 60.01).double().mean() < 1
    assert truth["image"].angle()[truth["mask"]].std() > 0.2
    with h5py.File(path) as file:
        assert "exp(-2 pi i psi t)" in file["truth/field_map_hz"].attrs["meaning"]
        assert file["truth"].attrs["b0"] == "60"
        assert file["truth"].attrs["seed"] == "5"


def test_a_seed_gives_one_scan(tmp_path, scan):
    settings = replace(RADIAL, noise=0.1)
    simulate(tmp_path / "again.h5", settings)
    once, again, other = scan(settings), contents(tmp_path / "again.h5"), scan(replace(settings, seed=1))
    for a, b in zip(once[1], again[1], strict=True):
        assert a.getHead() == b.getHead()
        np.testing.assert_array_equal(a.data, b.data)
    assert (once[2]["image"] != other[2]["image"]).any()


def test_a_nifti_volume_comes_in_axial_with_the_face_up_and_right_on_the_left(tmp_path):
    volume = np.zeros((20, 20, 6), dtype=np.float32)  # from right to left, from the back to the front, upwards
    volume[2:18, 2:18] = 1
    volume[2:6, 4:8] = 9
    affine = np.diag([-2.0, 2.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume * np.arange(1, 7), affine), tmp_path / "head.nii.gz")
    settings = replace(RADIAL, image=f"{tmp_path / 'head.nii.gz'}:3", slices=2)
    simulate(tmp_path / "raw.h5", settings)
    image = contents(tmp_path / "raw.h5")[2]["image"].abs()
    y, x = divmod(int(image[0].argmax()), 32)
    assert y > 18  # at the back
    assert x < 12  # the right side of the patient on the left
    bright = image > 0.5 * image.amax((1, 2), keepdim=True)
    assert image[1][bright[1]].mean() / image[0][bright[0]].mean() == pytest.approx(5 / 4, rel=0.02)


def test_npz_images_and_field_maps_are_taken_as_they_are(tmp_path):
    g = np.random.default_rng(0)
    image = np.zeros((32, 32), dtype=np.complex64)
    image[4:28, 6:26] = np.exp(1j * 0.7)
    field = np.broadcast_to(np.linspace(-50, 50, 32), (32, 32))
    np.savez(tmp_path / "slice.npz", image=image, unused=g.random((4, 4)))
    np.savez(tmp_path / "field.npz", psi=field)
    settings = replace(RADIAL, image=str(tmp_path / "slice.npz"), b0=str(tmp_path / "field.npz"))
    simulate(tmp_path / "raw.h5", settings)
    truth = contents(tmp_path / "raw.h5")[2]
    np.testing.assert_allclose(truth["image"][0], image, atol=1e-6)
    np.testing.assert_allclose(truth["field_map_hz"][0], field, atol=1e-4)
    assert (truth["mask"][0].numpy() == (image != 0)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectory": "rosette"}, "trajectory: expected one of spiral, radial, cartesian, got 'rosette'"),
        ({"matrix": (4, 64)}, "matrix: expected sizes from 8 to 1024, got 4x64"),
        ({"coils": 0}, "coils: expected a whole number from 1 to 65535, got 0"),
        ({"dwell_us": -4.0}, "dwell_us: expected a positive number, got -4.0"),
        ({"noise": math.nan}, "noise: expected a number of at least 0, got nan"),
        ({"readout_ms": 300.0}, "has 75000 samples; an MRD acquisition holds at most 65535"),
        ({"readout_ms": 0.3}, r"takes .* ms, got a readout of 0\.30 ms"),
        ({"b0": "-5"}, "b0: expected a number of Hz of at least 0, got -5"),
        ({"b0": "inf"}, "b0: expected a number of Hz of at least 0, got inf"),
        ({"b0": "field.tif"}, "expected FILE.nii, FILE.nii.gz or FILE.npz, with or without :INDEX, got 'field.tif'"),
        ({"image": "gone.npz"}, "gone.npz: there is no such file"),
        ({"slices": 14}, "room for 13 slices, got 14"),
        ({"trajectory": "cartesian", "shots": 5}, "of this matrix has 32 shots, got 5"),
        ({"trajectory": "cartesian", "shots": None, "readout_ms": 5.0}, "has 80 samples, which last 0.32 ms; got 5 ms"),
        ({"trajectory": "radial", "readout_ms": 0.1}, "at least 40 samples, got 25"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_the_reason(tmp_path, changes, message):
    with pytest.raises(SpinstreamError, match=message):
        simulate(tmp_path / "raw.h5", replace(SPIRAL, **changes))
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(tmp_path):
    def source(name: str, **arrays) -> SliceSource:
        np.savez(tmp_path / name, **arrays)
        return SliceSource.parse(f"{tmp_path / name}:3")

    with pytest.raises(FileError, match=r"one named image; found a \(4, 4\), b \(4, 4\)"):
        source("two.npz", a=np.eye(4), b=np.eye(4)).read(1, "image")
    with pytest.raises(FileError, match=r"expected 2 slice\(s\) from index 3, but there are 4"):
        source("few.npz", a=np.ones((4, 5, 5))).read(2, "image")
    with pytest.raises(FileError, match="not finite"):
        source("nan.npz", a=np.full((4, 4, 4), np.nan)).read(1, "image")
    (tmp_path / "text.npz").write_text("this is no archive")
    (tmp_path / "text.nii").write_text("this is no image")
    for name in ("text.npz", "text.nii"):
        with pytest.raises(FileError, match=f"{name}: cannot be read"):
            SliceSource.parse(str(tmp_path / name)).read(1, "image")
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3, 2), dtype=np.float32), np.eye(4)), tmp_path / "series.nii")
    with pytest.raises(FileError, match=r"two or three dimensions, got the shape \(3, 3, 3, 2\)"):
        SliceSource.parse(str(tmp_path / "series.nii")).read(1, "image")
    with pytest.raises(SpinstreamError, match="the slices are empty"):
        np.savez(tmp_path / "zero.npz", a=np.zeros((8, 8)))
        simulate(tmp_path / "raw.h5", replace(RADIAL, image=str(tmp_path / "zero.npz")))


def test_an_older_file_is_replaced_only_when_all_went_well(tmp_path):
    raw = tmp_path / "raw.h5"
    raw.write_text("older")
    with pytest.raises(SpinstreamError):
        simulate(raw, replace(SPIRAL, slices=14))
    assert raw.read_text() == "older"
    simulate(raw, replace(RADIAL, matrix=(16, 16)))
    assert len(contents(raw)[1]) == 5
    assert list(tmp_path.iterdir()) == [raw]
    with pytest.raises(FileError, match="cannot be written"):
        simulate(tmp_path / "no such folder" / "raw.h5", replace(RADIAL, matrix=(16, 16)))
