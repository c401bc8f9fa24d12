import shutil
import subprocess

import numpy as np
import pytest
import torch

from recon_core.calibration import eigenmaps
from recon_core.calibration.espirit import espirit
from recon_core.fourier import fft_centred, resize_centred

from analytic import complex_noise, positions, relative, ring_of_coils, smooth_head

N, COILS, SIZE = 48, 6, 24


@pytest.fixture(scope="module", name="calibration")
def _calibration():
    """The centre of k-space of known coils, with noise of one percent of its mean."""
    kspace = fft_centred(ring_of_coils(N, COILS) * smooth_head(N), (1, 2))
    centre = resize_centred(kspace, (SIZE, SIZE)).to(torch.complex64)
    return centre + 0.01 * centre.abs().mean() * complex_noise(*centre.shape)


def agreement(maps, truth):
    """|cosine| of the angle between maps of unit length: one where they are the same up to a phase."""
    return (maps.conj() * truth.to(maps)).sum(0).abs()


def test_maps_are_the_coils_where_there_is_signal(calibration):
    maps = espirit(calibration, (N, N))
    signal = smooth_head(N).abs() > 0.1
    cosine = agreement(maps, ring_of_coils(N, COILS))[signal]
    assert cosine.mean() > 0.9995
    assert cosine.min() > 0.98  # at the rim, where the truncated calibration rings


def test_unit_length_or_nothing(calibration):
    length = espirit(calibration, (N, N)).abs().square().sum(0).sqrt()
    kept = length > 0
    torch.testing.assert_close(length[kept], torch.ones(int(kept.sum())))
    signal = smooth_head(N).abs() > 0.1
    assert kept[signal].all()
    assert kept.float().mean() < 0.75


def test_crop_and_threshold_shrink_the_support(calibration):
    def support(**options):
        return int((espirit(calibration, (N, N), **options).abs().sum(0) > 0).sum())

    assert support(crop=0.5) > support(crop=0.9) > support(crop=0.99) > 0
    assert support(threshold=0.005) > support(threshold=0.05)


def test_phase_is_that_of_the_strongest_virtual_coil(calibration):
    maps = espirit(calibration, (N, N))
    _, _, right = torch.linalg.svd(calibration.flatten(1).T, full_matrices=False)
    strongest = torch.tensordot(right[0].conj(), maps, 1)  # up to one phase for all pixels
    strong = strongest.abs() > 0.1
    turned = strongest[strong] / strongest[strong][0]
    assert turned.angle().abs().max() < 1e-3


def test_rotation_of_a_coil_rotates_its_map(calibration):
    phase = torch.exp(1j * torch.arange(COILS))[:, None, None]
    maps, turned = espirit(calibration, (N, N)), espirit(phase * calibration, (N, N))
    assert agreement(turned, phase * maps)[maps.abs().sum(0) > 0].min() > 0.9999


def test_rectangular_and_odd():
    """Linear sensitivities on a 40 x 33 grid, from an odd region."""
    y, x = torch.meshgrid(positions(40), positions(33), indexing="ij")
    coils = torch.stack([1 + y, 1j * (1 - 0.8 * y), 1 + 0.5j * x])
    coils = coils / coils.abs().square().sum(0).sqrt()
    image = torch.exp(-30 * (y**2 + x**2))
    centre = resize_centred(fft_centred(coils * image, (1, 2)), (19, 16)).to(torch.complex64)
    maps = espirit(centre, (40, 33), kernel=5)
    assert agreement(maps, coils)[image > 0.1].min() > 0.999


def test_three_dimensions():
    z, y, x = torch.meshgrid(positions(12), positions(14), positions(16), indexing="ij")
    coils = torch.stack([1 + z, 1j * (1 - y), 1 + 0.7j * x])
    coils = coils / coils.abs().square().sum(0).sqrt()
    image = torch.exp(-40 * (z**2 + y**2 + x**2))
    centre = resize_centred(fft_centred(coils * image, (1, 2, 3)), (10, 10, 10)).to(torch.complex64)
    maps = espirit(centre, (12, 14, 16), kernel=4)
    assert maps.shape == (3, 12, 14, 16)
    assert agreement(maps, coils)[image > 0.1].min() > 0.995


def test_result_does_not_depend_on_the_chunks(calibration, monkeypatch):
    whole = espirit(calibration, (N, N))
    monkeypatch.setattr("recon_core.calibration.espirit.CHUNK", COILS**2 * N * 5)
    assert eigenmaps.CHUNK > COILS**2 * N**2
    assert relative(espirit(calibration, (N, N)) - whole, whole) < 1e-4


@pytest.mark.parametrize(
    ("size", "shape", "kernel", "message"),
    [
        ((24, 24), (8, 48, 48), 6, r"map shape of 2 axes"),
        ((24, 5), (48, 48), 6, r"kernel of 6 samples does not fit the calibration region \[24, 5\]"),
        ((24, 24), (48, 48), 0, "kernel of 0 samples"),
    ],
)
def test_shapes_that_do_not_fit(size, shape, kernel, message):
    with pytest.raises(ValueError, match=message):
        espirit(complex_noise(2, *size), shape, kernel)


@pytest.mark.parametrize("value", [0, torch.nan])
def test_data_without_signal(value):
    with pytest.raises(ValueError, match="zero or not finite"):
        espirit(torch.full((2, 12, 12), value, dtype=torch.complex64), (16, 16))


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("bart") is None, reason="needs bart")
@pytest.mark.parametrize(("threshold", "crop"), [(0.03, 0.95), (0.05, 0.8)])
def test_bart_finds_the_same_maps(calibration, tmp_path, threshold, crop):
    """BART's threshold is on squared singular values."""
    whole = resize_centred(calibration, (N, N))
    write_bart(tmp_path / "kspace", whole.permute(2, 1, 0).unsqueeze(2))
    command = ["bart", "ecalib", "-m1", "-k6", f"-r{SIZE}", f"-t{threshold**2}", f"-c{crop}", "kspace", "maps"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = read_bart(tmp_path / "maps").squeeze().permute(2, 1, 0)
    ours = espirit(calibration, (N, N), threshold=threshold, crop=crop)
    both = (ours.abs().sum(0) > 0) & (theirs.abs().sum(0) > 0)
    assert ((ours.abs().sum(0) > 0) ^ (theirs.abs().sum(0) > 0)).sum() < 0.01 * both.sum()
    ours, theirs = ours[:, both], theirs[:, both]
    ours = ours * torch.vdot(ours.flatten(), theirs.flatten()).sgn()  # one phase for all pixels is free
    assert relative(ours - theirs, theirs) < 1e-2


def write_bart(path, array):
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    np.asfortranarray(array.numpy()).ravel(order="F").tofile(path.with_suffix(".cfl"))


def read_bart(path):
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    values = np.fromfile(path.with_suffix(".cfl"), np.complex64)
    return torch.from_numpy(np.ascontiguousarray(values.reshape(shape, order="F").squeeze()))
