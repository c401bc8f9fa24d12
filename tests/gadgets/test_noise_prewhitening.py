"""Prewhitening, with noise of known covariance."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from gadgets.mrd import NOT_IMAGING
from gadgets.noise_covariance import NoiseCovariance
from gadgets.noise_prewhitening import NoisePrewhitening
from gadgets.stored import find_stored, pseudonym, stored_at

from scans import header, line, run, session

NOISE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT
RNG = np.random.default_rng(3)
MIXING = RNG.standard_normal((4, 4)) + 1j * RNG.standard_normal((4, 4)) + 2 * np.eye(4)
COVARIANCE = MIXING @ MIXING.conj().T


def noise(samples, mixing=MIXING, seed=0):
    """Noise with the covariance of `mixing` `[coil, source]` per complex sample."""
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((2, mixing.shape[1], samples)) / np.sqrt(2)
    return mixing @ (sources[0] + 1j * sources[1])


def noise_scan(samples=20000, dwell=5.0, seed=0, **more):
    return line(0, noise(samples, seed=seed, **more), flags=[NOISE], sample_time_us=dwell)


def system(ratio=None, labels=()) -> str:
    coils = "".join(f"<coilLabel><coilNumber>{i}</coilNumber><coilName>{n}</coilName></coilLabel>" for i, n in labels)
    bandwidth = f"<relativeReceiverNoiseBandwidth>{ratio}</relativeReceiverNoiseBandwidth>" if ratio else ""
    return f"<acquisitionSystemInformation>{bandwidth}{coils}</acquisitionSystemInformation>"


def labelled(*names) -> str:
    return system(labels=enumerate(names))


def measurement(own="", noise_id="") -> str:
    dependency = (
        f"<measurementDependency><dependencyType>Noise</dependencyType><measurementID>{noise_id}</measurementID>"
        "</measurementDependency>"
        if noise_id
        else ""
    )
    return (
        f"<measurementInformation><measurementID>{own}</measurementID><patientPosition>HFS</patientPosition>"
        f"{dependency}</measurementInformation>"
    )


def whiten(items, tmp_path, before="", **properties):
    opened = session(header(before=before), state_folder=tmp_path)
    return run([NoisePrewhitening(**properties)], items, opened), opened


def covariance_of(data) -> np.ndarray:
    return data @ data.conj().T / data.shape[1]


@pytest.mark.parametrize(("dwell", "noise_dwell", "ratio"), [(5.0, 5.0, None), (10.0, 4.0, 0.8), (2.0, 5.0, 1.0)])
def test_the_scaling_is_that_of_gadgetron(tmp_path, dwell, noise_dwell, ratio):
    scans = [noise_scan(dwell=noise_dwell, seed=seed) for seed in (1, 2)]
    imaging = line(1, noise(20000, seed=9), sample_time_us=dwell)
    (white,), opened = whiten([*scans, imaging], tmp_path, system(ratio))
    factor = np.sqrt(2 * dwell / noise_dwell * (ratio or 0.793))
    np.testing.assert_allclose(covariance_of(white.data), factor**2 * np.eye(4), atol=0.05 * factor**2)
    # Exactly: inverse Cholesky factor of the covariance over N - 1, times the factor.
    samples = np.hstack([scan.data for scan in scans])
    lower = np.linalg.cholesky(samples @ samples.conj().T / (samples.shape[1] - 1))
    np.testing.assert_allclose(white.data, factor * np.linalg.solve(lower, imaging.data), rtol=1e-3, atol=1e-3)
    assert len(opened.tell.about(f"2 noise scan(s) of the stream, scaled by {factor:.4g}")) == 1
    assert opened.history[0].startswith("NoisePrewhitening: noise from 2 noise scan(s)")
    assert opened.noise_known


def test_at_the_receivers_true_bandwidth_each_real_channel_has_unit_variance(tmp_path):
    # Noise sampled at 5 us, and imaging at 5 us in which the receiver's filter leaves 0.793 of the nominal bandwidth.
    imaging = line(1, noise(20000, seed=9) / np.sqrt(0.793))
    (white,), _ = whiten([noise_scan(), imaging], tmp_path)
    assert white.data.real.var() == pytest.approx(1, abs=0.03)
    assert white.data.imag.var() == pytest.approx(1, abs=0.03)


def test_the_mean_is_not_removed(tmp_path):
    constant = line(0, np.full((1, 1000), 2.0), flags=[NOISE])
    (white,), _ = whiten([constant, line(1, np.full((1, 8), 4.0))], tmp_path, system(1.0))
    np.testing.assert_allclose(white.data, np.sqrt(2) * 2 * np.sqrt(999 / 1000), rtol=1e-5)


def test_without_noise_data_everything_passes_and_it_says_so_once(tmp_path):
    items = [line(step) for step in range(3)]
    after, opened = whiten(items, tmp_path)
    assert all(a is b for a, b in zip(after, items, strict=True))
    assert opened.tell == ["NoisePrewhitening: no noise data: the channels are not prewhitened."]
    assert opened.history == ["NoisePrewhitening: no noise data: the channels are not prewhitened"]
    assert not opened.noise_known
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [flag for flag in NOT_IMAGING if flag != NOISE])
def test_other_lines_pass_untouched_and_do_not_begin_the_imaging(tmp_path, flag):
    other = line(5, channels=7, flags=[flag])
    (first, white), _ = whiten([other, noise_scan(), line(1, noise(2000))], tmp_path)
    assert first is other
    np.testing.assert_allclose(covariance_of(white.data), 2 * 0.793 * np.eye(4), atol=0.3)


@pytest.mark.parametrize("flag", [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING])
def test_calibration_lines_are_whitened_alike(tmp_path, flag):
    data = noise(20000, seed=9)
    (a, b), _ = whiten([noise_scan(), line(1, data, flags=[flag]), line(1, data)], tmp_path)
    np.testing.assert_array_equal(a.data, b.data)
    assert a.isFlagSet(flag)


def test_noise_after_the_first_imaging_line_is_not_used(tmp_path):
    imaging = line(1, noise(100, seed=9))
    alone, _ = whiten([noise_scan(), imaging], tmp_path)
    stream = [noise_scan(), imaging, noise_scan(seed=1), imaging, noise_scan(seed=2), imaging]
    after, opened = whiten(stream, tmp_path)
    assert len(after) == 3
    for white in after:
        np.testing.assert_array_equal(white.data, alone[0].data)
    assert len(opened.tell.about("after the first imaging line are not used")) == 1


@pytest.mark.parametrize(("dwell", "noise_dwell"), [(0.0, 5.0), (5.0, 0.0)])
def test_unknown_sampling_times_mean_a_factor_of_one_as_in_gadgetron(tmp_path, dwell, noise_dwell):
    imaging = line(1, noise(20000, seed=9), sample_time_us=dwell)
    (white,), opened = whiten([noise_scan(dwell=noise_dwell), imaging], tmp_path)
    np.testing.assert_allclose(covariance_of(white.data), np.eye(4), atol=0.05)
    assert opened.tell.about("scaled by 1 ")


def test_what_came_stays_as_it_was(tmp_path):
    imaging = line(1, noise(100), trajectory=RNG.standard_normal((100, 2)))
    before = imaging.to_bytes()
    (white,), _ = whiten([noise_scan(), imaging], tmp_path)
    assert imaging.to_bytes() == before
    assert white.getHead() == imaging.getHead()
    np.testing.assert_array_equal(white.traj, imaging.traj)
    assert white.data.dtype == np.complex64


# What outlives a session


def test_a_noise_measurement_serves_those_that_depend_on_it(tmp_path):
    after, _ = whiten([noise_scan(dwell=4.0)], tmp_path, measurement(own="noise 1"))
    assert after == []
    imaging = line(1, noise(100, seed=9), sample_time_us=8.0)
    here, _ = whiten([noise_scan(dwell=4.0), imaging], tmp_path)
    (white,), opened = whiten([imaging], tmp_path, measurement(own="image", noise_id="noise 1"))
    np.testing.assert_allclose(white.data, here[0].data, rtol=1e-5)
    assert opened.tell.about(f"noise from noise measurement {pseudonym('noise 1')}, scaled by")


def test_noise_of_the_stream_comes_before_stored_noise(tmp_path):
    NoiseCovariance(1e6 * np.eye(4, dtype=complex), 5.0).save(stored_at(tmp_path, "noise", "old"))
    _, opened = whiten([noise_scan(), line(1, noise(100))], tmp_path, measurement(noise_id="old"))
    assert opened.tell.about("noise from 1 noise scan(s) of the stream")


def test_missing_noise_of_a_dependency_is_told(tmp_path):
    items = [line(1)]
    after, opened = whiten(items, tmp_path, measurement(noise_id="gone"))
    assert after == items
    assert opened.tell.about(
        f"The noise measurement {pseudonym('gone')}, on which this one depends, is not stored here."
    )
    assert opened.tell.about("no noise data")


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..", "/etc/passwd", "", "a" * 5000, "con\x7f:*?", "~root", "ä\\b"]
)
def test_ids_from_the_network_stay_in_the_state_folder(tmp_path, name):
    place = stored_at(tmp_path, "noise", name)
    assert place.resolve().parent == (tmp_path / "noise").resolve()
    assert len(place.name) < 100
    NoiseCovariance(np.eye(2, dtype=complex), 5.0).save(place)
    assert NoiseCovariance.load(place).dwell_us == 5.0


def test_what_an_earlier_version_named_by_the_id_is_found_and_loses_that_name(tmp_path):
    scan = "42101_PATID4711_900_34"
    whiten([noise_scan()], tmp_path, measurement(own=scan))
    (path,) = (tmp_path / "noise").iterdir()
    path.rename(path.with_name(f"{scan}-e6237941a4564f9f.npz"))
    for _ in range(2):
        _, opened = whiten([line(1, noise(100))], tmp_path, measurement(noise_id=scan))
        assert opened.tell.about(f"noise from noise measurement {pseudonym(scan)}, scaled by")
        assert not opened.tell.about("PATID")
        assert [kept.name for kept in (tmp_path / "noise").iterdir()] == [path.name]


def test_a_former_name_serves_where_it_cannot_be_changed(tmp_path, monkeypatch):
    path = stored_at(tmp_path, "noise", "old")
    path.parent.mkdir()
    (former := path.with_name(f"old-{path.name}")).touch()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert find_stored(tmp_path, "noise", "old") == former


def test_a_pseudonym_stands_for_itself():
    assert pseudonym("a") != "a"
    assert pseudonym(pseudonym("a")) == pseudonym("a")


def test_different_ids_have_different_files(tmp_path):
    names = ["a/b", "a_b", "a\\b", "A_B", "a" * 100, "a" * 101]
    assert len({stored_at(tmp_path, "noise", name).name.lower() for name in names}) == len(names)


def test_nothing_is_left_beside_a_stored_covariance(tmp_path):
    for seed in (1, 2):
        whiten([noise_scan(seed=seed)], tmp_path, measurement(own="noise"))
    assert len(list((tmp_path / "noise").iterdir())) == 1


def test_a_file_can_give_the_covariance(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, covariance=COVARIANCE, dwell_us=5.0)
    imaging = line(1, noise(20000, seed=9))
    (white,), opened = whiten([imaging], tmp_path, covariance=path)
    np.testing.assert_allclose(covariance_of(white.data), 2 * 0.793 * np.eye(4), atol=0.1)
    assert opened.tell.about("noise from the file mine.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"covariance": np.eye(4)}, "dwell_us"),
        ({"dwell_us": 5.0}, "covariance"),
        ({"covariance": np.ones((4, 3)), "dwell_us": 5.0}, "Hermitian"),
        ({"covariance": np.triu(np.ones((4, 4))), "dwell_us": 5.0}, "Hermitian"),
        ({"covariance": np.full((4, 4), np.nan), "dwell_us": 5.0}, "Hermitian"),
        ({"covariance": np.array([object()]), "dwell_us": 5.0}, "pickle"),
    ],
)
def test_files_that_hold_no_covariance_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"mine\.npz.*{message}|{message}.*mine\.npz"):
        whiten([line(1, channels=4)], tmp_path, covariance=path)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"\x93NUMPY garbage", b"PK\x03\x04 garbage"])
def test_files_that_cannot_be_read_are_refused(tmp_path, content):
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the noise covariance mine\.npz"):
        whiten([line(1)], tmp_path, covariance=path)


def test_an_array_file_is_no_covariance_file(tmp_path):
    np.save(tmp_path / "mine.npy", np.eye(2))
    with pytest.raises(ValueError, match=r"cannot read the noise covariance mine\.npy"):
        whiten([line(1)], tmp_path, covariance=tmp_path / "mine.npy")


# What does not fit


def test_other_channels_than_in_the_noise_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the data have 3 channels, but 1 noise scan\(s\) of the stream 4"):
        whiten([noise_scan(), line(1, channels=3)], tmp_path)
    with pytest.raises(ValueError, match="expected 4 channels as in the noise, got 3"):
        whiten([noise_scan(), line(1, channels=4), line(2, channels=3)], tmp_path)


def test_noise_of_other_coils_is_refused(tmp_path):
    whiten([noise_scan()], tmp_path, labelled("A1", "A2", "A3", "A4") + measurement(own="noise"))
    with pytest.raises(ValueError, match="expected noise of the coils A1, A2, A3, B4, got that of A1, A2, A3, A4"):
        whiten([line(1, channels=4)], tmp_path, labelled("A1", "A2", "A3", "B4") + measurement(noise_id="noise"))


def test_coils_in_another_order_are_put_in_order(tmp_path):
    whiten([noise_scan()], tmp_path, labelled("A1", "A2", "A3", "A4") + measurement(own="noise"))
    order = [2, 0, 3, 1]
    names = [f"A{1 + coil}" for coil in order]
    imaging = line(1, noise(20000, seed=9)[order])
    (white,), _ = whiten([imaging], tmp_path, labelled(*names) + measurement(noise_id="noise"))
    np.testing.assert_allclose(covariance_of(white.data), 2 * 0.793 * np.eye(4), atol=0.1)


def test_noise_scans_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a dwell of 4 us, those before it 4 and 5 us"):
        whiten([noise_scan(), noise_scan(dwell=4.0)], tmp_path)
    with pytest.raises(ValueError, match=r"has 3 channels .* those before it 4"):
        whiten([noise_scan(), noise_scan(mixing=np.eye(3))], tmp_path)


def test_too_little_noise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the noise scans have 4 samples, too few for 4 channels"):
        whiten([noise_scan(samples=4), line(1, channels=4)], tmp_path)


def test_noise_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        whiten([line(0, np.full((2, 16), np.nan), flags=[NOISE])], tmp_path)


def test_noise_scans_of_nothing_but_zeros_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing but zeros"):
        whiten([line(0, np.zeros((2, 16)), flags=[NOISE]), line(1)], tmp_path)


def test_a_dead_channel_is_set_to_zero_and_named(tmp_path):
    dead = MIXING.copy()
    dead[2] = 0
    imaging = noise(20000, seed=9)
    (white,), opened = whiten([noise_scan(mixing=dead), line(1, imaging)], tmp_path)
    assert opened.tell.about("dead and set to zero: 2")
    np.testing.assert_array_equal(white.data[2], 0)
    np.testing.assert_allclose(covariance_of(white.data), 2 * 0.793 * np.diag([1, 1, 0, 1]), atol=0.1)


def test_channels_that_repeat_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the noise of some channels is a mixture of that of others"):
        whiten([noise_scan(mixing=MIXING[[0, 1, 1]]), line(1, channels=3)], tmp_path)
