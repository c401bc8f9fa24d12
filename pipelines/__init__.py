"""What reads, checks, runs, serves and replays pipelines; the command line."""

import os

# Before torch is loaded: its OpenMP threads would otherwise spin while they wait for each other, and a server whose
# cores are shared (with Gadgetron, with another session) would be ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
