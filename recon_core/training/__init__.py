"""Training of priors from clean or from noisy images."""
