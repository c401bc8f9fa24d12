"""Streaming stages, one gadget per file: they know MRD items and frames, no sockets; the maths is in recon_core."""
