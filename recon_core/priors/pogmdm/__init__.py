"""The product of Gaussian mixtures diffusion model: a small prior whose density can be written down."""
