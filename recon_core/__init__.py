"""Reconstruction maths in torch: operators, calibration, solvers, simulation. No MRD, no XML, no files."""
