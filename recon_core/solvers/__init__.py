"""Solvers of the imaging equation, one method per file."""
