"""Heads, coils, fields, noise, and the exact signal that a scanner would receive from them."""

from recon_core.simulation.coils import coil_maps
from recon_core.simulation.field import smooth_field
from recon_core.simulation.phantom import head
from recon_core.simulation.receiver_noise import coil_covariance, correlated_noise
from recon_core.simulation.signal import exact_signal
from recon_core.simulation.slices import fitted, smooth_phase

__all__ = [
    "coil_covariance",
    "coil_maps",
    "correlated_noise",
    "exact_signal",
    "fitted",
    "head",
    "smooth_field",
    "smooth_phase",
]
