"""Tables of the priors: who denoises how well, and how the shipped weights came to be."""
