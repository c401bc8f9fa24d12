"""Installs a faulty copy of every gadget, as a package of somebody else would install its own."""

from __future__ import annotations

from pathlib import Path

from pipelines.registry import installed_gadgets

FAULTS = ("Raises", "Hangs", "Dies")

MODULE = '''"""Each gadget, with a fault at the first item that it takes."""

import os
import signal
import time

from pipelines.registry import GROUP
from importlib.metadata import entry_points


def _raises():
    raise RuntimeError("made to fail")


def _hangs():
    time.sleep(3600)


def _dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def _faulty(base, fault):
    def take(self, item):
        fault()
        yield item

    name = fault.__name__[1:].title() + base.__name__
    return type(name, (base,), {"take": take, "__module__": __name__, "__doc__": f"{base.__name__} with a fault."})


for point in entry_points(group=GROUP):
    if point.value.split(":")[0] != __name__:
        for fault in (_raises, _hangs, _dies):
            made = _faulty(point.load(), fault)
            globals()[made.__name__] = made
'''


def install(folder: Path) -> None:
    """Makes a folder that, on PYTHONPATH, brings gadgets called RaisesCgSense, HangsCgSense, DiesCgSense, ..."""
    info = folder / "faulty_gadgets-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "faulty_gadgets.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-gadgets\nVersion: 1.0\n")
    names = [f"{fault}{gadget}" for gadget in installed_gadgets() for fault in FAULTS]
    points = "\n".join(f"{name} = faulty_gadgets:{name}" for name in names)
    (info / "entry_points.txt").write_text(f"[spinstream.gadgets]\n{points}\n")
