"""What the process has loaded from which workers are forked."""

import gc

import pipelines.cli  # noqa: F401  (multiprocessing runs the server's main module again in each worker)
from pipelines.registry import installed_gadgets
from pipelines.streams import worker_process

__all__ = ["worker_process"]

installed_gadgets()
gc.collect()
gc.freeze()  # the first collection in a worker would copy all that it shares with the others
