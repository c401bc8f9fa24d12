"""Linear operators from images to k-space and back."""
