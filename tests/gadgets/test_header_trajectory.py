"""Trajectories from headers: properties that define each family, not the code that computes it."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.trajectory import Trajectory

from scans import header, line, run, session

GOLDEN_DEGREES = 111.24611797498108  # 180 degrees over the golden ratio


def trajectories(head, items) -> list[np.ndarray]:
    return [readout.traj for readout in run([Trajectory()], items, session(head))]


def angle_degrees(spoke) -> float:
    x, y = spoke[-1] - spoke[0]
    return float(np.degrees(np.arctan2(y, x)))


def radial(kind, limits):
    return header(matrix=(64, 64, 1), fov=(256, 256, 5), kind=kind, limits=limits)


def test_linear_spokes_share_the_half_circle():
    head = radial("radial", {"kspace_encoding_step_1": (0, 19, 10)})
    spokes = trajectories(head, [line(step, samples=128) for step in range(20)])
    np.testing.assert_allclose([angle_degrees(spoke) for spoke in spokes], 9.0 * np.arange(20), atol=1e-3)
    for spoke in spokes:
        np.testing.assert_allclose(spoke[64], 0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(spoke[0]), 32, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(np.diff(spoke, axis=0), axis=1), 0.5, rtol=1e-4)


def test_golden_spokes_need_no_number():
    steps = [0, 1, 7, 1000]
    spokes = trajectories(radial("goldenangle", {}), [line(step, samples=128) for step in steps])
    turns = (np.array([angle_degrees(spoke) for spoke in spokes]) - GOLDEN_DEGREES * np.array(steps)) % 360
    np.testing.assert_allclose(np.minimum(turns, 360 - turns), 0, atol=1e-2)


@pytest.mark.parametrize(("samples", "centre"), [(80, 16), (80, 64), (64, 0)])
def test_partial_spokes_reach_the_edge_on_their_long_side(samples, centre):
    head = radial("goldenangle", {})
    (spoke,) = trajectories(head, [line(0, samples=samples, center_sample=centre)])
    np.testing.assert_allclose(spoke[centre], 0, atol=1e-6)
    spacing = np.linalg.norm(np.diff(spoke, axis=0), axis=1)
    np.testing.assert_allclose(spacing, 32 / max(centre, samples - centre), rtol=1e-4)


def test_spokes_beyond_those_announced_are_refused():
    with pytest.raises(ValueError, match="kspace_encode_step_1 is 20, but the header describes 20 steps"):
        trajectories(radial("radial", {"kspace_encoding_step_1": (0, 19, 10)}), [line(20)])
    with pytest.raises(ValueError, match="need their number"):
        trajectories(radial("radial", {}), [line(0)])


def description(identifier, longs=None, doubles=None) -> str:
    def parameters(kind, values):
        return "".join(f"<{kind}><name>{n}</name><value>{v}</value></{kind}>" for n, v in (values or {}).items())

    return (
        f"<trajectoryDescription><identifier>{identifier}</identifier>"
        f"{parameters('userParameterLong', longs)}{parameters('userParameterDouble', doubles)}"
        "</trajectoryDescription>"
    )


def spiral(more):
    return header(matrix=(64, 64, 1), fov=(256, 256, 5), kind="spiral", limits={}, more=more)


VDS_LONGS = {"interleaves": 8, "SamplingTime_ns": 5000, "fov_coefficients": 1}
VDS_DOUBLES = {
    "MaxGradient_G_per_cm": 1.5,
    "MaxSlewRate_G_per_cm_per_s": 14414.4,
    "FOVCoeff_1_cm": 25.6,
    "krmax_per_cm": 1.25,
}


def test_the_spiral_of_gadgetron_keeps_its_limits():
    head = spiral(description("HargreavesVDS2000", VDS_LONGS, VDS_DOUBLES))
    first, second = trajectories(head, [line(step, samples=2000, center_sample=0) for step in (0, 1)])
    radius = np.linalg.norm(first, axis=1)
    assert radius[0] == 0
    assert radius[-1] == pytest.approx(32, rel=0.01)  # 1.25/cm times 25.6 cm
    gamma_hz_per_g = 4258.0
    gradient = np.diff(first, axis=0) / 25.6 / 5e-6 / gamma_hz_per_g  # in G/cm
    assert np.linalg.norm(gradient, axis=1).max() == pytest.approx(1.5, rel=0.02)
    slew = np.diff(gradient, axis=0) / 5e-6
    assert np.linalg.norm(slew, axis=1).max() == pytest.approx(14414.4, rel=0.05)
    # Radius grows by one cycle per field of view for every eighth of a turn, as eight interleaves need.
    turns = np.unwrap(np.arctan2(first[50:, 1], first[50:, 0])) / (2 * np.pi)
    np.testing.assert_allclose(np.polyfit(turns, radius[50:], 1)[0], 8, rtol=0.01)
    turned = np.angle((second[100, 0] + 1j * second[100, 1]) / (first[100, 0] + 1j * first[100, 1]))
    assert abs(np.degrees(turned)) == pytest.approx(45, abs=0.01)


def test_the_spiral_of_gadgetron_may_lose_density_outwards():
    # FOV(k) = 25.6 cm - 10 cm^2 k falls to 13.1 cm at the edge, where turns are so much further apart.
    doubles = VDS_DOUBLES | {"FOVCoeff_2_cm": -10.0}
    (shot,) = trajectories(
        spiral(description("HargreavesVDS2000", VDS_LONGS, doubles)), [line(0, samples=2000, center_sample=0)]
    )
    radius = np.linalg.norm(shot, axis=1)
    turns = np.unwrap(np.arctan2(shot[1:, 1], shot[1:, 0])) / (2 * np.pi)
    pitch = np.gradient(radius[1:], turns)
    fov_cm = 25.6 - 10 * radius[1:] / 25.6
    np.testing.assert_allclose(pitch[50:-1], 8 * 25.6 / fov_cm[50:-1], rtol=0.01)


def test_samples_after_the_end_of_a_spiral_are_cut():
    head = spiral(description("HargreavesVDS2000", VDS_LONGS, VDS_DOUBLES))
    opened = session(head)
    item = line(0, samples=4000, center_sample=0, discard_pre=3)
    (readout,) = run([Trajectory()], [item], opened)
    assert readout.number_of_samples < 3000
    np.testing.assert_array_equal(readout.data, item.data[:, 3 : 3 + readout.number_of_samples])
    assert len(opened.tell.about("the spiral ends after")) == 1


@pytest.mark.parametrize(
    ("more", "exponent"),
    [
        (description("ArchimedeanSpiral", {"interleaves": 4}), 1.0),
        (description("VariableDensitySpiral", {"interleaves": 4}, {"exponent": 2.0}), 2.0),
    ],
    ids=["archimedean", "variable density"],
)
def test_closed_spirals_grow_as_a_power_of_their_angle(more, exponent):
    shots = trajectories(spiral(more), [line(step, samples=1000, center_sample=0) for step in range(4)])
    first = shots[0][1:]
    radius, angle = np.linalg.norm(first, axis=1), np.unwrap(np.arctan2(first[:, 1], first[:, 0]))
    # k = 32 tau^exponent with tau proportional to the angle; at the edge the turns of four shots are one cycle apart.
    tau = (radius / 32) ** (1 / exponent)
    at_edge = 4 / (2 * np.pi)
    np.testing.assert_allclose(angle - angle[-1], (tau - 1) * exponent * 32 / at_edge, atol=1e-2)
    assert radius[-1] == pytest.approx(32)
    ends = [np.degrees(np.arctan2(*shot[-1][::-1])) for shot in shots]
    np.testing.assert_allclose(np.sort((np.array(ends) - ends[0] + 45) % 360 - 45), [0, 90, 180, 270], atol=1e-2)


def test_spirals_that_are_not_described_are_refused():
    with pytest.raises(ValueError, match=r"identifiers HargreavesVDS2000, .* got None"):
        trajectories(spiral(""), [line(0)])
    with pytest.raises(ValueError, match=r"got 'Rosette'"):
        trajectories(spiral(description("Rosette")), [line(0)])
    with pytest.raises(ValueError, match="HargreavesVDS2000 lacks the user parameter interleaves"):
        trajectories(spiral(description("HargreavesVDS2000")), [line(0)])
