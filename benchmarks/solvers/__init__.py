"""How good and how fast the solvers are: the papers' tables, a measured brain, and times beside the usual way."""
