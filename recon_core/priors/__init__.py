"""Priors: what images look like, as denoisers of white noise at any level."""

from recon_core.priors.library import load_prior, shipped_priors
from recon_core.priors.prior import Convention, Prior

__all__ = ["Convention", "Prior", "load_prior", "shipped_priors"]
