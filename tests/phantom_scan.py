"""A small phantom with known coils, and its signal summed up directly."""

from __future__ import annotations

from dataclasses import dataclass

import ismrmrd
import numpy as np
import torch

from gadgets.frame import Frame, Samples, Space

from scans import line

SIZE = 48
SPACE = Space((1, SIZE, SIZE), (5.0, 240.0, 240.0), (1, SIZE, SIZE), (5.0, 240.0, 240.0))
Y, X = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5


def head() -> np.ndarray:
    """A smooth-edged disc with structure and phase, complex `[y, x]`."""
    radius = np.hypot(X / 0.34, Y / 0.4)
    disc = 1 / (1 + np.exp((radius - 1) * 20))
    inside = 1 + 0.5 * np.cos(14 * X) * np.cos(11 * Y) - 0.6 * np.exp(-((X - 0.1) ** 2 + Y**2) / 0.005)
    return disc * inside * np.exp(1j * (0.5 + 2 * X - Y))


def coils(number=4) -> np.ndarray:
    """Smooth sensitivities of coils around the phantom with unit root sum of squares, `[coil, y, x]`."""
    angles = 2 * np.pi * np.arange(number) / number
    maps = [
        np.exp(-((X - 0.5 * np.cos(a)) ** 2 + (Y - 0.5 * np.sin(a)) ** 2) / 0.3 + 1j * (a + 2 * X * np.sin(a)))
        for a in angles
    ]
    return np.array(maps) / np.linalg.norm(maps, axis=0)


def signal(images, k) -> np.ndarray:
    """Of `[coil, y, x]` at k `[sample, (x, y)]` in cycles per field of view, orthonormal scaling: `[coil, sample]`."""
    along_y, along_x = (np.exp(-2j * np.pi * np.outer(k[:, i], np.arange(SIZE) - SIZE // 2) / SIZE) for i in (1, 0))
    return np.einsum("cyx,ny,nx->cn", images, along_y, along_x, optimize=True) / SIZE


def cartesian(steps=range(SIZE)) -> np.ndarray:
    """`[shot, sample, (x, y)]`."""
    kx, ky = np.meshgrid(np.arange(SIZE) - SIZE // 2, np.array(steps) - SIZE // 2)
    return np.stack([kx, ky], axis=-1).astype(float)


def spokes(number=90) -> np.ndarray:
    """Radial `[shot, sample, (x, y)]`, dense enough for the whole k-space."""
    radius = np.arange(-SIZE, SIZE) / 2
    angles = np.pi * np.arange(number) / number
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]


@dataclass
class Phantom:
    """A phantom scan: truth and samples."""

    image: np.ndarray
    maps: np.ndarray
    trajectory: np.ndarray
    data: np.ndarray  # [shot, coil, sample]

    @classmethod
    def scanned(cls, trajectory, number=4, noise=0.0, image=None) -> Phantom:
        image, maps = head() if image is None else image, coils(number)
        data = np.array([signal(maps * image, shot) for shot in trajectory])
        rng = np.random.default_rng(5)
        data = data + noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)) / np.sqrt(2)
        return cls(image, maps, trajectory, data)

    def samples(self) -> Samples:
        kspace = torch.from_numpy(self.data.astype(np.complex64)).movedim(0, 1).contiguous()
        trajectory = torch.from_numpy(self.trajectory[..., ::-1].astype(np.float32)).movedim(-1, 0).contiguous()
        return Samples(kspace, trajectory)

    def frame(self, with_maps=False, **more) -> Frame:
        samples = self.samples()
        times = torch.zeros(samples.kspace.shape[1:])
        frame = Frame(samples, times, SPACE, ismrmrd.AcquisitionHeader(), **more)
        if with_maps:
            frame.coil_maps = torch.from_numpy(self.maps.astype(np.complex64))
        return frame

    def lines(self, steps=None, **more) -> list[ismrmrd.Acquisition]:
        """The scan as acquisitions that carry their trajectory."""
        steps = range(len(self.data)) if steps is None else steps
        pairs = zip(steps, self.data, self.trajectory, strict=True)
        return [line(step, data, k, sample_time_us=10.0, **more) for step, data, k in pairs]


def error(image, truth, where=None) -> float:
    """Root mean square error relative to the truth."""
    image = np.asarray(image)
    where = np.ones(truth.shape, bool) if where is None else where
    return float(np.linalg.norm((image - truth)[..., where]) / np.linalg.norm(truth[..., where]))
