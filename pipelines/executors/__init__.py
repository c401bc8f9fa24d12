"""Where the frames of a chain are computed: in its own process, or elsewhere."""
