"""What the process has loaded from which workers are forked."""

import gc
import importlib
import pkgutil

import pipelines.commands
from pipelines.registry import installed_gadgets
from pipelines.streams import worker_process

__all__ = ["worker_process"]

installed_gadgets()
for command in pkgutil.iter_modules(pipelines.commands.__path__, "pipelines.commands."):
    importlib.import_module(command.name)  # multiprocessing runs the server's main module again in each worker
gc.collect()
gc.freeze()  # the first collection in a worker would copy all that it shares with the others
