"""A three-dimensional radial scan through the shipped pipelines, without and with a field."""

import math
from contextlib import closing

import ismrmrd
import numpy as np
import torch

from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from recon_core.metrics import nrmse

from analytic import direct_sum, positions
from scans import encoding_xml, line, te

N, SPOKES, DWELL_S, ECHO_S = 16, 400, 200e-6, 2e-3
SAMPLES = 2 * N


def grid():
    return torch.meshgrid(positions(N), positions(N), positions(N), indexing="ij")


def ellipsoid():
    """Smooth, with structure and a phase."""
    z, y, x = grid()
    inside = torch.sigmoid(14 * (1 - torch.sqrt((z / 0.36) ** 2 + (y / 0.32) ** 2 + (x / 0.38) ** 2)))
    return inside * (1 + 0.4 * torch.cos(9 * x) * torch.cos(11 * y + 5 * z)) * torch.exp(1j * (x + 2 * z))


def coils():
    """Around the object, unit root sum of squares."""
    z, y, x = grid()
    places = ((0, 0.7, 0), (0, -0.7, 0), (0.7, 0, 0.3), (-0.7, 0, 0.3))
    maps = torch.stack([
        torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 0.5 + 1j * (a + 2 * b * x + c * z))
        for a, b, c in places
    ])  # fmt: skip
    return maps / maps.abs().square().sum(0).sqrt()


def field_hz():
    z, y, x = grid()
    return 60 * torch.exp(-((z + 0.1) ** 2 + y**2 + (x - 0.2) ** 2) / 0.05) + 50 * y


def kooshball():
    """Spokes through the centre, evenly over the sphere, `[(z, y, x), shot, sample]`."""
    step = torch.arange(SPOKES, dtype=torch.float64)
    z, turn = (step + 0.5) / SPOKES, step * math.pi * (3 - math.sqrt(5))
    directions = torch.stack([z, (1 - z**2).sqrt() * turn.sin(), (1 - z**2).sqrt() * turn.cos()])
    radius = (torch.arange(SAMPLES) - SAMPLES // 2) * (N / SAMPLES) * 0.99
    return directions[..., None] * radius


def raw_file(path, field=None):
    """All samples of one time at once: the field is one more phase of the image."""
    trajectory, images = kooshball(), coils() * ellipsoid()
    times = ECHO_S + DWELL_S * (torch.arange(SAMPLES) - SAMPLES // 2)
    phases = [1 if field is None else torch.exp(-2j * math.pi * field * time) for time in times]
    data = torch.cat([direct_sum(images * p, trajectory[..., [i]]) for i, p in enumerate(phases)], -1)
    matrix = {"matrix": (N, N, N), "fov": (200, 200, 200), "kind": "radial", "limits": {}}
    header = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
        "<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"{encoding_xml(**matrix)}{te(1e3 * ECHO_S)}</ismrmrdHeader>"
    )
    with closing(ismrmrd.Dataset(path, "dataset")) as file:
        file.write_xml_header(header.encode())
        for shot in range(SPOKES):
            k = trajectory[:, shot].flip(0).T.numpy()
            file.append_acquisition(line(shot, data[:, shot].numpy(), k, sample_time_us=1e6 * DWELL_S))
    return path


def reconstruct(path, folder, **settings):
    images = {}
    parameters = {"ImageExport.data_type": "complex64", "CgSense.iterations": "30", **settings}
    job = Replay(raw=path, pipeline="cg_sense", parameters=parameters)
    with RawFile(path) as raw:
        site = Site(device="cpu", state_folder=folder)
        keep = lambda image: images.setdefault(image.image_series_index, torch.from_numpy(image.data[0].copy()))  # noqa: E731
        replay_here(job, raw, site, keep, lambda text: None, lambda items, total: items)
    return images[1], images[2]


def test_preview_and_cg_sense(tmp_path):
    image, preview = reconstruct(raw_file(tmp_path / "raw.h5"), tmp_path)
    truth = ellipsoid().abs().float()
    assert nrmse(image.abs(), truth) < 0.05
    assert nrmse(preview.abs(), truth) < 0.2


def test_a_field_map_of_the_volume(tmp_path):
    raw = raw_file(tmp_path / "raw.h5", field_hz())
    np.savez(tmp_path / "map.npz", field_hz().numpy())
    truth = ellipsoid().abs().float()
    corrected, _ = reconstruct(raw, tmp_path, **{"FieldMap.file": str(tmp_path / "map.npz")})
    blurred, _ = reconstruct(raw, tmp_path)
    assert nrmse(corrected.abs(), truth) < 0.05
    assert nrmse(blurred.abs(), truth) > 2 * nrmse(corrected.abs(), truth)
