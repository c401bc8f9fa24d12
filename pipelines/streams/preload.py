"""What the process has loaded from which workers are forked."""

from pipelines.registry import installed_gadgets
from pipelines.streams import worker_process

__all__ = ["worker_process"]

installed_gadgets()
