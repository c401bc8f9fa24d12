"""A gadget that takes its process along, importable by workers of a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from gadgets.frame import Frame
from gadgets.gadget import Gadget


class Dies(Gadget[Frame]):
    """As native code may."""

    takes = Frame
    per_frame = True

    def take(self, item: Frame) -> Iterator[object]:
        """Does not come back."""
        os.kill(os.getpid(), signal.SIGKILL)
        yield item
