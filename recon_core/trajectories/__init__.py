"""Where samples lie in k-space, one family per file.

All trajectories are float64 `[axis, shot, sample]` in cycles per field of view, axes in the order of the image axes:
(y, x). Each family can be computed for all its shots at once or for a few of them by number, as a stream needs it.
"""

from recon_core.trajectories.cartesian import cartesian_lines
from recon_core.trajectories.hargreaves import SpiralDesign, hargreaves_spiral, slowed
from recon_core.trajectories.radial import golden_angles, linear_angles, radial_spokes
from recon_core.trajectories.spiral import archimedean_spiral, interleaf_angles, turned, variable_density_spiral

__all__ = [
    "SpiralDesign",
    "archimedean_spiral",
    "cartesian_lines",
    "golden_angles",
    "hargreaves_spiral",
    "interleaf_angles",
    "linear_angles",
    "radial_spokes",
    "slowed",
    "turned",
    "variable_density_spiral",
]
