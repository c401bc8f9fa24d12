"""What the process has loaded from which workers are forked."""

from pipelines.registry import installed_gadgets
from pipelines.streams import workers

__all__ = ["workers"]

installed_gadgets()
