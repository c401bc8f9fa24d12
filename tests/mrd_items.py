"""Small MRD items, headers, gadgets and definitions that several tests use."""

from __future__ import annotations

import os
import signal
import threading
import time

import ismrmrd
import numpy as np
import torch

from gadgets.frame import Frame
from gadgets.gadget import ACQUISITIONS, Gadget

HEADER_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>320</x><y>160</y><z>5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>8</x><y>8</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>160</x><y>160</y><z>5</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>7</maximum><center>4</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>"""


class Count(Gadget[ismrmrd.Acquisition]):
    """Takes acquisitions away and tells how many came."""

    takes = ismrmrd.Acquisition
    needs = removes = frozenset({ACQUISITIONS})

    def open(self, session):
        super().open(session)
        self.count = 0

    def take(self, item):
        self.count += 1
        return iter(())

    def finish(self):
        self.session.tell(f"counted {self.count}")
        return iter(())


class Fail(Gadget[ismrmrd.Acquisition]):
    """Raises on the third acquisition."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        if item.scan_counter == 2:
            raise ValueError("the coil is on fire")
        yield item


class ToImage(Gadget[ismrmrd.Acquisition]):
    """Makes a small image of each acquisition."""

    takes = ismrmrd.Acquisition
    needs = removes = frozenset({ACQUISITIONS})

    def take(self, item):
        array = np.full((1, 1, 4, 4), item.scan_counter, np.float32)
        yield ismrmrd.Image.from_array(array, acquisition=item, transpose=False, image_index=item.scan_counter + 1)


class Long(Gadget[ismrmrd.Acquisition]):
    """Computes for half a minute at each acquisition, as long as the client stays; yields it as it begins."""

    takes = ismrmrd.Acquisition
    steps = 1500

    def take(self, item):
        yield item
        for _ in range(self.steps):
            self.session.require_client()
            time.sleep(0.02)


class Short(Long):
    """Computes for a moment."""

    steps = 15


class Die(Gadget[ismrmrd.Acquisition]):
    """Crashes as native code does, on the third acquisition."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        if item.scan_counter == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield item


class Hang(Gadget[ismrmrd.Acquisition]):
    """Hangs on the third acquisition and asks for nobody."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        if item.scan_counter == 2:
            time.sleep(1000)
        yield item


class Hog(Gadget[ismrmrd.Acquisition]):
    """Takes eight gibibytes on the third acquisition."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        if item.scan_counter == 2:
            torch.ones(8 << 30, dtype=torch.uint8)
        yield item


class WhichProcess(Gadget[ismrmrd.Acquisition]):
    """Tells in which process it runs."""

    takes = ismrmrd.Acquisition

    def open(self, session):
        super().open(session)
        session.tell(f"process {os.getpid()}")

    def take(self, item):
        yield item


class BigImages(Gadget[ismrmrd.Acquisition]):
    """Makes an image of 16 MiB of each acquisition."""

    takes = ismrmrd.Acquisition
    needs = removes = frozenset({ACQUISITIONS})

    def take(self, item):
        yield ismrmrd.Image.from_array(np.zeros((1, 1, 2048, 2048), np.float32), transpose=False)


class Forks(Gadget[ismrmrd.Acquisition]):
    """Leaves a child of its own behind, which holds whatever it holds itself."""

    takes = ismrmrd.Acquisition

    def open(self, session):
        super().open(session)
        if not os.fork():
            time.sleep(30)
            os._exit(0)

    def take(self, item):
        yield item


class LeavesThread(Gadget[ismrmrd.Acquisition]):
    """Leaves a thread behind that never ends."""

    takes = ismrmrd.Acquisition

    def open(self, session):
        super().open(session)
        threading.Thread(target=time.sleep, args=(1000,)).start()

    def take(self, item):
        yield item


class Pass(Gadget[Frame]):
    """Takes frames, of which there are none."""

    takes = Frame


REGISTRY = {
    kind.__name__: kind
    for kind in (
        Count,
        Fail,
        ToImage,
        Long,
        Short,
        Die,
        Hang,
        Hog,
        WhichProcess,
        BigImages,
        Forks,
        LeavesThread,
        Pass,
    )
}


def configuration(*gadgets: str) -> str:
    """A pipeline definition that hosts these gadgets."""
    inner = "\n".join(f'<gadget name="{name}"/>' for name in gadgets)
    return f"""<configuration><version>2</version><stream><external>
<execute name="pipelines.streams.gadgetron" target="run_chain" type="python"/>
<configuration>
{inner}
</configuration></external></stream></configuration>"""


def acquisition(number: int = 0, channels: int = 2, samples: int = 16, **fields) -> ismrmrd.Acquisition:
    """A Cartesian readout of noise, reproducible by its number."""
    rng = np.random.default_rng(number)
    data = (rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))).astype(
        np.complex64
    )
    item = ismrmrd.Acquisition.from_array(data, scan_counter=number, center_sample=samples // 2, sample_time_us=5.0)
    item.idx.kspace_encode_step_1 = number
    for name, value in fields.items():
        setattr(item, name, value)
    return item
