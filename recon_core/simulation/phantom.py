"""An axial head, drawn anew for every seed: what is simulated when nobody brings an image.

Lengths are in millimetres; x runs to the left of the patient, y to the back and z upwards, as in MRD and DICOM. The
head is defined from the basal ganglia (z near 0) to near the vertex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from recon_core.simulation.slice_grid import SliceGrid
from recon_core.simulation.smooth_noise import smooth_noise

LOWEST_MM, HIGHEST_MM = -6.0, 66.0

# The head is drawn on a finer grid and averaged onto that of the image.
_FINE_PIXELS, _FINEST = 512, 5

# Signal of a T1-weighted scan.
_SKIN, _FAT, _MUSCLE = 0.5, 0.92, 0.38
_BONE, _MARROW = 0.05, 0.3
_CSF, _GREY, _WHITE = 0.13, 0.46, 0.72
_NUCLEUS, _THALAMUS, _PALLIDUM = 0.5, 0.58, 0.65
_VESSEL, _PLEXUS = 0.95, 0.36

_BRAIN_DEPTH = 12.5  # below the skin


def head(
    matrix: tuple[int, int], pixel_mm: float, levels_mm: Sequence[float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws axial slices of a T1-weighted head: scalp, skull, folded cortex, ventricles, deep nuclei, vessels.

    Args:
        matrix: image size (y, x); the head is centred on the pixel matrix // 2.
        pixel_mm: distance of pixels. The head is about 155 mm wide and 195 mm long.
        levels_mm: z of each slice, from -6 to 66.
        generator: the source of all randomness: another one gives another head.

    Returns:
        The magnitude, float32 `[slice, y, x]` from 0 to about 1, and where the head is, bool `[slice, y, x]`.

    Raises:
        ValueError: a level outside the head.
    """
    outside = [level for level in levels_mm if not LOWEST_MM <= level <= HIGHEST_MM]
    if outside:
        raise ValueError(f"expected slices from {LOWEST_MM:g} to {HIGHEST_MM:g} mm, got one at {outside[0]:g} mm")
    seed = int(torch.randint(2**31, (), generator=generator))
    factor = min(math.ceil(_FINE_PIXELS / max(matrix)), _FINEST)

    def draw(level: float) -> Tensor:
        # All slices draw from the same random functions, so that they show one head.
        return _draw(SliceGrid(matrix, pixel_mm, factor, level, torch.Generator().manual_seed(seed)))

    magnitude, inside = avg_pool2d(torch.stack([draw(level) for level in levels_mm], dim=1), factor)
    return magnitude.to(torch.float32), inside > 0.5


def _draw(grid: SliceGrid) -> Tensor:
    """Signal and outline of one slice on the fine grid, `[2, row, column]`."""
    inside = _outline(grid)
    depth = grid.depth(inside)
    image = _scalp_and_skull(grid, depth)
    brain = depth > _BRAIN_DEPTH + 0.6 * grid.noise(35)
    folds = _sulci(grid, depth - _BRAIN_DEPTH) | _fissures(grid)
    image = torch.where(brain, _parenchyma(grid, brain & ~folds), image)
    for region, signal in [*_nuclei(grid), *_ventricles(grid), *_vessels(grid, depth)]:
        image[region] = signal
    soft = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), 0.35 / grid.step))
    texture = 1 + 0.02 * grid.noise(25) + 0.015 * grid.noise(6)
    return torch.stack([soft * texture, torch.ones_like(soft)]) * inside


def _outline(grid: SliceGrid) -> Tensor:
    """An egg: wider at the back, smaller towards the vertex."""
    size = (1 - (max(grid.z, 0) / 88) ** 2.6) ** (1 / 2.6)
    width = 77 * size * (1 + 0.09 * (grid.y / 97).clamp(-1, 1))
    radius: Tensor = (grid.x / width).abs() ** 2.15 + (grid.y / (97 * size)).abs() ** 2.15
    return radius < 1 + 0.006 * grid.noise(70)


def _scalp_and_skull(grid: SliceGrid, depth: Tensor) -> Tensor:
    """Skin, fat, temporal muscle, bone with marrow, and the fluid below."""
    scalp = 5 + 0.5 * grid.noise(50)
    towards_ear = torch.cos(torch.atan2(grid.y, grid.x)).abs()
    muscle = depth > 2.4 + 15 * (0.84 + 0.004 * grid.z - towards_ear).clamp(min=0)
    marrow = (depth > scalp + 1.6) & (depth < scalp + 4 + 0.5 * grid.noise(30))
    image = torch.where(depth > 1.1, _FAT * (1 + 0.06 * grid.noise(9)), _SKIN)
    image = torch.where(muscle, _MUSCLE * (1 + 0.1 * grid.noise(7)), image)
    image[depth > scalp] = _BONE
    image = torch.where(marrow, _MARROW * (1 + 0.25 * grid.noise(12)), image)
    image[depth > 11 + 0.4 * grid.noise(50)] = _CSF
    return image


def _sulci(grid: SliceGrid, depth: Tensor) -> Tensor:
    """Folds that run inwards from the surface of the brain, and from between the hemispheres, and wind a little."""
    x, y = grid.x + 4 * grid.noise(30), grid.y + 4 * grid.noise(30)
    radius = torch.hypot(x, y).clamp(min=1)
    level = torch.full_like(x, 0.9 * grid.z)
    # Noise that changes quickly along a surface and slowly below it has zeros that lead inwards.
    outer = torch.stack([62 * x / radius, 76 * y / radius, 0.3 * depth + level], dim=-1)
    inner = torch.stack([0.3 * x, y, level], dim=-1)
    inner_depth = torch.where(_between_hemispheres(grid), grid.side, math.inf)
    width = 0.55 + 0.2 * grid.noise(30)

    def folds(where: Tensor, wavelength: float) -> Tensor:
        return _distance_from_zero(smooth_noise(where, wavelength, grid.generator), grid.step) < width

    deep = folds(outer, 23) & (depth < 22 + 0.15 * max(grid.z - 20, 0) + 6 * grid.noise(45))
    shallow = folds(outer, 16) & (depth < 12 + 5 * grid.noise(30))
    return deep | shallow | (folds(inner, 20) & (inner_depth < 13 + 5 * grid.noise(35)))


def _distance_from_zero(function: Tensor, step: float) -> Tensor:
    """Distance from where a function is zero, to first order."""
    along_y, along_x = torch.gradient(function, spacing=step)
    return function.abs() / torch.hypot(along_y, along_x).clamp(min=1e-3)


def _between_hemispheres(grid: SliceGrid) -> Tensor:
    """In front of the corpus callosum, behind it, and above it."""
    return grid.y.abs() > 37 - 3.7 * max(grid.z - 24, 0)


def _fissures(grid: SliceGrid) -> Tensor:
    """Between the hemispheres, and around the insula."""
    between = (grid.side < 0.7 + 0.25 * grid.noise(25)) & _between_hemispheres(grid)
    if grid.z > 26:
        return between
    insula = grid.stroke((37, -17, 1), (39.5, -4, 1.1), (39, 12, 1), (36, 22, 0.7))
    return between | insula | grid.stroke((39, -4, 1.2), (49, -6, 1.4), (70, -9, 1.8))


def _parenchyma(grid: SliceGrid, tissue: Tensor) -> Tensor:
    """Grey matter lines every surface, white matter is what lies deeper; fluid elsewhere."""
    thickness = 2.7 + 0.35 * grid.noise(18)
    grey_share = torch.sigmoid((thickness - grid.depth(tissue)) / 0.3)
    signal = _GREY * grey_share + _WHITE * (1 - grey_share) * (1 + 0.03 * grid.noise(40))
    return torch.where(tissue, signal, _CSF)


def _nuclei(grid: SliceGrid) -> list[tuple[Tensor, float]]:
    """Caudate, putamen, pallidum and thalamus."""

    def cut(middle: float, half_height: float) -> float:
        """How large an ellipsoid's cross-section is at this level."""
        return math.sqrt(max(1 - ((grid.z - middle) / half_height) ** 2, 1e-6))

    caudate, putamen, thalamus = cut(8, 20), cut(5, 19), cut(8, 15)
    return [
        (grid.ellipse((14, -20), (6 * caudate, 9.5 * caudate), -15), _NUCLEUS),
        (grid.ellipse((27.5, -3), (5 * putamen, 15 * putamen), -12), _NUCLEUS),
        (grid.ellipse((20, 0), (4 * putamen, 9 * putamen), -18), _PALLIDUM),
        (grid.ellipse((10.5, 9), (7.5 * thalamus, 13 * thalamus), -20), _THALAMUS),
    ]


def _ventricles(grid: SliceGrid) -> list[tuple[Tensor, float]]:
    """The lateral ventricles, and below their bodies the third one and the cistern behind it."""
    if grid.z > 31:
        return []
    if grid.z > 16:
        return [(_ventricle_bodies(grid, 1 - (max(grid.z - 18, 0) / 15) ** 2), _CSF)]
    rise = (grid.z - LOWEST_MM) / (16 - LOWEST_MM)
    horn = grid.stroke(
        (3.5, -11 + 6 * rise, 1.6), (6, -20, 2.6 + 1.4 * rise), (9, -27, 2.4 + rise), (13 + rise, -33, 1.2)
    )
    atrium = grid.stroke(
        (19 - 3 * rise, 25, 1.8 + rise), (25, 34, 4 + 1.2 * rise), (25.5, 42, 4), (24, 51, 3 - rise), (21, 58, 0.8)
    )
    third = grid.stroke((0, -5, 1.3), (0, 17, 1.6))
    cistern = grid.stroke((0, 26, 2.4), (5, 28.5, 2), (9, 30, 1.2)) | grid.stroke((0, 27, 3), (0, 31, 2))
    plexus = grid.ellipse((24.5, 38), (2.4, 5.5), 12)
    return [(horn | atrium | third | cistern, _CSF), (plexus, _PLEXUS)]


def _ventricle_bodies(grid: SliceGrid, width: float) -> Tensor:
    knots = [
        (13, -31, 1.2),
        (8, -20, 4),
        (8, -8, 4.2),
        (10, 3, 3.6),
        (14, 16, 3.6),
        (20, 28, 4.4),
        (24, 36, 4.6),
        (24.5, 45, 2.2),
    ]
    return grid.stroke(*((side, y, half * width) for side, y, half in knots))


def _vessels(grid: SliceGrid, depth: Tensor) -> list[tuple[Tensor, float]]:
    """The sagittal sinus, and cut branches of the middle cerebral artery and of the veins between the hemispheres."""
    # The sinus: a triangle below the bone, in front and behind.
    vessels = (depth > 9.5) & (depth < 14) & (grid.side < 3.4 - 0.7 * (depth - 10).clamp(0)) & (grid.y.abs() > 40)
    branches = [(42, -4.5), (48, -6), (39.5, 9), (38, 18), (1.5, -44), (1.5, -62), (2, 48)]
    on_left, on_right = torch.rand(2, len(branches), generator=grid.generator) < 0.5
    for branch, left, right in zip(branches, on_left, on_right, strict=True):
        vessels |= grid.ellipse(branch, (0.9, 0.9)) & torch.where(grid.x > 0, left, right)
    return [(vessels, _VESSEL)]
