"""Priors: what images look like, as denoisers of white noise at any level."""
