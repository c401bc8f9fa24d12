"""Reconstruction that estimates what others measure: field maps and coil maps."""
