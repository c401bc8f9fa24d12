"""Simulates a scan of a head into an ISMRMRD file that also holds the truth.

The group `dataset` is what any MRD reader expects. The group `truth` holds, with their units as attributes:

    image             complex64 `[slice, y, x]`
    field_map_hz      float32 `[slice, y, x]`, psi in signal ~ exp(-2 pi i psi t), t in seconds from the excitation
    coil_maps         complex64 `[slice, coil, y, x]`, unit root sum of squares
    mask              bool `[slice, y, x]`
    noise_covariance  complex64 `[coil, coil]`, of the imaging data

Without noise, the data are `exact_signal` of the truth. For Cartesian scans they are that over sqrt(2): the grid that
they are encoded on has twice as many pixels, so that the orthonormal Fourier transform of that grid gives the truth.

The noise level is relative to the image: with `noise` = 0.02 the noise has a standard deviation per complex sample
(mean variance over coils) of 2 % of the root mean square of |image| inside the mask. As the signal is a unitary
transform of the image, a fully sampled Cartesian image with unit-norm coil combination has a signal-to-noise ratio of
1 / 0.02. Noise is correlated between coils, as coils that see one body have it. Reconstructions from prewhitened data
with unit-norm maps hence come with the shading sqrt(s^H C^-1 s), s being the coil maps at a pixel and C the covariance:
a few per cent.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pipelines import simulated_readouts as readouts
from pipelines.errors import FileError, SpinstreamError
from pipelines.simulated_readouts import Readouts
from pipelines.simulated_scan import Scan, write_scan
from pipelines.slice_source import SliceSource
from recon_core import simulation
from recon_core.object_mask import object_mask
from recon_core.simulation.phantom import HIGHEST_MM, LOWEST_MM

TRAJECTORIES = ("spiral", "radial", "cartesian")
SLICE_MM, GAP_MM = 5.0, 1.0
_FIRST_LEVEL_MM = 8.0  # of the phantom: basal ganglia and ventricles


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What to simulate.

    Attributes:
        trajectory: spiral (out), radial or cartesian.
        matrix: image size (y, x); pixels are square.
        coils: receive coils around the head.
        shots: interleaves or spokes of the fully sampled trajectory; None takes 8 interleaves, or as many spokes or
            lines as full sampling needs.
        acceleration: R; every R-th shot is played out. The interleaves of a spiral then sample the centre of k-space
            fully, and only the edge R times too coarsely.
        readout_ms: length of a readout; None takes 15.6 ms for spirals and twofold oversampling for the others.
        dwell_us: time between samples, in whole nanoseconds.
        b0: the 99th percentile in Hz of a smooth field, or FILE[:INDEX] with a field map in Hz for signal
            ~ exp(-2 pi i psi t), as an array `field_map_hz` in an .npz file or as NIfTI.
        noise: see above; 0 for none, and no noise scan either.
        seed: of every random draw.
        image: FILE[:INDEX], a NIfTI or .npz file (array `image`) instead of the head phantom; scaled to the matrix,
            and so that its 99.5th percentile is 1. Images without a phase get a smooth one.
        slices: how many, 5 mm thick with gaps of 1 mm.
        repetitions: the same slices with other noise.
        fov_mm: field of view along the longer side.

    Raises:
        SpinstreamError: a setting out of its range.
    """

    trajectory: str = "spiral"
    matrix: tuple[int, int] = (128, 128)
    coils: int = 8
    shots: int | None = None
    acceleration: int = 1
    readout_ms: float | None = None
    dwell_us: float = 4.0
    b0: str = "0"
    noise: float = 0.02
    seed: int = 0
    image: str | None = None
    slices: int = 1
    repetitions: int = 1
    fov_mm: float = 220.0

    def __post_init__(self) -> None:
        """Refuses what no scanner could do."""
        if self.trajectory not in TRAJECTORIES:
            raise SpinstreamError(f"trajectory: expected one of {', '.join(TRAJECTORIES)}, got {self.trajectory!r}")
        if min(self.matrix) < 8 or max(self.matrix) > 1024:
            raise SpinstreamError(f"matrix: expected sizes from 8 to 1024, got {self.matrix[0]}x{self.matrix[1]}")
        for name in ("coils", "shots", "acceleration", "slices", "repetitions"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 65535:
                raise SpinstreamError(f"{name}: expected a whole number from 1 to 65535, got {value}")
        for name in ("readout_ms", "dwell_us", "fov_mm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SpinstreamError(f"{name}: expected a positive number, got {value}")
        if not 0 <= self.noise < math.inf:
            raise SpinstreamError(f"noise: expected a number of at least 0, got {self.noise}")

    @property
    def pixel_mm(self) -> float:
        """Distance of pixels."""
        return self.fov_mm / max(self.matrix)

    @property
    def positions_mm(self) -> list[float]:
        """z of the slices, around the isocentre."""
        return [(i - (self.slices - 1) / 2) * (SLICE_MM + GAP_MM) for i in range(self.slices)]


def holds_truth(path: Path) -> bool:
    """Whether a file is a simulated scan, so that another may take its place."""
    try:
        with h5py.File(path) as file:
            return "truth" in file
    except OSError:
        return False


@dataclass(frozen=True)
class Truth:
    """What is scanned: see the module's description of the group `truth`."""

    image: Tensor
    field_map_hz: Tensor
    coil_maps: Tensor
    mask: Tensor


def simulate(output: Path, settings: SimulationSettings) -> None:
    """Simulates a scan and writes it with its truth; replaces the file if it is there, once all has gone well.

    Raises:
        SpinstreamError: settings that do not go together, with the reason.
        FileError: a file that cannot be read or written.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    try:
        shots = _readouts(settings)
        truth = _truth(settings, generator)
    except ValueError as error:
        raise SpinstreamError(f"this scan cannot be simulated: {error}") from error
    covariance = _noise_covariance(truth, settings.noise)
    scan = Scan(
        name=_name(settings),
        readouts=shots,
        matrix=settings.matrix,
        pixel_mm=settings.pixel_mm,
        slice_mm=SLICE_MM,
        positions_mm=settings.positions_mm,
        acceleration=settings.acceleration,
        repetitions=settings.repetitions,
        signal=_signal(truth, shots),
        noise_covariance=covariance,
    )
    unfinished = output.with_name(output.name + ".part")
    try:
        unfinished.unlink(missing_ok=True)
        write_scan(unfinished, scan, generator)
        _write_truth(unfinished, truth, covariance, settings)
        unfinished.replace(output)
    except OSError as error:
        raise FileError(f"{output}: cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _readouts(settings: SimulationSettings) -> Readouts:
    common = (settings.shots, settings.acceleration, settings.readout_ms, round(settings.dwell_us * 1e3) * 1e-9)
    if settings.trajectory == "spiral":
        fov_y, fov_x = (n * settings.pixel_mm * 1e-3 for n in settings.matrix)
        return readouts.spiral(settings.matrix, (fov_y, fov_x), *common)
    return {"radial": readouts.radial, "cartesian": readouts.cartesian}[settings.trajectory](settings.matrix, *common)


def _truth(settings: SimulationSettings, generator: torch.Generator) -> Truth:
    positions = _positions_m(settings)
    image, mask = (
        _drawn(settings, positions, generator)
        if settings.image is None
        else _brought(SliceSource.parse(settings.image), settings, positions, generator)
    )
    return Truth(
        image=image,
        field_map_hz=_field_map(settings, mask, positions, generator),
        coil_maps=torch.stack([simulation.coil_maps(settings.coils, p) for p in positions]),
        mask=mask,
    )


def _positions_m(settings: SimulationSettings) -> Tensor:
    """Of all pixels, `[slice, y, x, (x, y, z)]`."""
    ny, nx = settings.matrix
    x, y = ((torch.arange(n, dtype=torch.float64) - n // 2) * settings.pixel_mm for n in (nx, ny))
    z = torch.tensor(settings.positions_mm, dtype=torch.float64)
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1) * 1e-3


def _drawn(settings: SimulationSettings, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Image and mask of the head phantom: from the basal ganglia upwards, as far as there is room."""
    spacing = SLICE_MM + GAP_MM
    room = int((HIGHEST_MM - LOWEST_MM) / spacing) + 1
    if settings.slices > room:
        raise ValueError(f"the head phantom has room for {room} slices, got {settings.slices}")
    lowest = min(_FIRST_LEVEL_MM, HIGHEST_MM - (settings.slices - 1) * spacing)
    levels = [lowest + i * spacing for i in range(settings.slices)]
    magnitude, mask = simulation.head(settings.matrix, settings.pixel_mm, levels, generator)
    return magnitude * simulation.smooth_phase(positions, generator), mask


def _brought(
    source: SliceSource, settings: SimulationSettings, positions: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Image and mask from a user's file."""
    slices = source.read(settings.slices, "image")
    parts = (slices.data.real, slices.data.imag) if slices.data.is_complex() else (slices.data,)
    fitted = [simulation.fitted(part, slices.pixel, settings.matrix) for part in parts]
    image = torch.complex(*fitted) if slices.data.is_complex() else fitted[0]
    scale = float(np.quantile(image.abs().numpy(), 0.995))
    if not scale > 0:
        raise ValueError(f"{source.path}: the slices are empty")
    image = image / scale
    if not image.is_complex():
        image = image * simulation.smooth_phase(positions, generator)
    return image.to(torch.complex64), object_mask(image.abs())


def _field_map(settings: SimulationSettings, mask: Tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
    try:
        percentile_hz = float(settings.b0)
    except ValueError:
        slices = SliceSource.parse(settings.b0).read(settings.slices, "field_map_hz")
        return simulation.fitted(slices.data, slices.pixel, settings.matrix).to(torch.float32)
    if not 0 <= percentile_hz < math.inf:
        raise ValueError(f"b0: expected a number of Hz of at least 0, got {settings.b0}")
    return simulation.smooth_field(mask, positions, percentile_hz, generator)


def _signal(truth: Truth, shots: Readouts) -> Tensor:
    """Without noise: complex64 `[slice, coil, shot, sample]`."""
    signals = []
    for image, maps, field in zip(truth.image, truth.coil_maps, truth.field_map_hz, strict=True):
        field_or_none = field if field.any() else None
        signals.append(simulation.exact_signal(image, maps, field_or_none, shots.trajectory, shots.times))
    return torch.stack(signals) / math.sqrt(shots.oversampling)


def _noise_covariance(truth: Truth, noise: float) -> Tensor:
    mean_square = truth.image[truth.mask].abs().square().mean()
    return simulation.coil_covariance(truth.coil_maps, truth.mask) * mean_square * noise**2


def _name(settings: SimulationSettings) -> str:
    """Names the scan after its settings, so that different scans have different measurement IDs."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    return f"simulated-{settings.trajectory}-{digest}"


def _write_truth(path: Path, truth: Truth, covariance: Tensor, settings: SimulationSettings) -> None:
    meanings = {
        "image": "arbitrary unit, axes slice, y, x; the centre of the field of view is the pixel N // 2",
        "field_map_hz": "Hz, signal ~ exp(-2 pi i psi t) with t in seconds from the excitation",
        "coil_maps": "relative sensitivity, axes slice, coil, y, x; unit root sum of squares over coils",
        "mask": "where the object is",
        "noise_covariance": "E[n n^H] per complex sample of the imaging data, squared unit of the image",
    }
    data = {**vars(truth), "noise_covariance": covariance.to(torch.complex64)}
    with h5py.File(path, "a") as file:
        group = file.create_group("truth")
        group.attrs.update({name: str(value) for name, value in asdict(settings).items()})
        for name, meaning in meanings.items():
            group[name] = data[name].numpy()
            group[name].attrs["meaning"] = meaning
