"""Streaming stages: one gadget per file. They know MRD items and frames, no sockets, and leave the maths to recon_core."""
