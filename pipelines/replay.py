"""Runs the raw data of a file through a pipeline: in this process, or as a client of any MRD server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd

from pipelines.definition import Definition, find_definition, load_definition
from pipelines.errors import SpinstreamError
from pipelines.session import Site, open_chain, read_header
from pipelines.streams.client import stream
from pipelines.streams.file import RawFile
from pipelines.wire import ConfigFile, ConfigText

SIEMENS_TICK_MS = 2.5
OTHER_TICK_MS = 1.0
LONGEST_PAUSE_S = 60.0
VERSION = re.compile(r"<version>[^<]*</version>")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What to replay, and how.

    Attributes:
        raw: ISMRMRD file.
        group: of the measurement in it.
        pipeline: name of an installed definition, or the path of one.
        parameters: properties to set, by "gadget.property".
        realtime: pace the acquisitions by their time stamps.
        tick_ms: length of one time stamp tick; None takes Siemens' 2.5 ms for Siemens data and 1 ms for all others.
    """

    raw: Path
    pipeline: str
    group: str = "dataset"
    parameters: Mapping[str, str] = field(default_factory=dict)
    realtime: bool = False
    tick_ms: float | None = None


Sink = Callable[[ismrmrd.Image], None]
Progress = Callable[[Iterable[ismrmrd.Acquisition], int], Iterable[ismrmrd.Acquisition]]


def replay_here(job: Replay, raw: RawFile, site: Site, sink: Sink, note: Callable[[str], None], show: Progress) -> None:
    """Runs the pipeline in this process.

    Args:
        job: what to replay.
        raw: its open file.
        site: of this machine.
        sink: takes each item that comes out.
        note: takes what gadgets tell.
        show: wraps the items in a progress display.

    Raises:
        SpinstreamError: the pipeline, the header or the data are not usable; says why.
    """
    definition = local_definition(job.pipeline, site).override(job.parameters, "--set", local=True)
    chain = open_chain(definition, read_header(raw.header_xml), site, note)
    for item in chain.run(show(_items(job, raw), raw.acquisitions)):
        sink(item)
    note(f"times: {chain.report()}")


def replay_to(
    address: tuple[str, int],
    job: Replay,
    raw: RawFile,
    sink: Sink,
    note: Callable[[str], None],
    show: Progress,
    patience_s: float | None,
) -> None:
    """Streams the file to an MRD server. A pipeline that is a file here is sent as text, a name is sent as a name.

    Raises:
        WireError: the server is not there, broke off, or reported an error.
        FileError: the raw file turned out unreadable.
    """
    path = Path(job.pipeline)
    config = ConfigText(_read_text(path)) if path.is_file() else ConfigFile(job.pipeline)
    items = show(_items(job, raw), raw.acquisitions)
    stream(address, config, _without_version(raw.header_xml, note), items, sink, note, job.parameters, patience_s)


def _without_version(header_xml: str, note: Callable[[str], None]) -> str:
    """The header without its <version>: at any but its own library's Gadgetron waits for ever, and says nothing."""
    found = VERSION.search(header_xml)
    if not found:
        return header_xml
    note(f"the header is sent without its {found[0]}, at which Gadgetron could hang")
    return VERSION.sub("", header_xml, count=1)


def local_definition(pipeline: str, site: Site) -> Definition:
    """The definition that a name or a path means.

    Raises:
        PipelineError: there is none, or it cannot be read.
    """
    path = Path(pipeline)
    return load_definition(path) if path.is_file() else find_definition(pipeline, site.definitions)


def _items(job: Replay, raw: RawFile) -> Iterable[ismrmrd.Acquisition]:
    if not job.realtime:
        return raw.items()
    return paced(raw.items(), job.tick_ms or _tick_ms(raw.header_xml))


def paced(
    items: Iterable[ismrmrd.Acquisition], tick_ms: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[ismrmrd.Acquisition]:
    """Yields items no earlier than their time stamps say, counted from the first.

    A jump of more than `LONGEST_PAUSE_S` (a noise scan of an hour before, a clock past midnight) is not waited for.
    """
    start: float | None = None
    for item in items:
        stamp = item.time_stamp if isinstance(item, ismrmrd.Waveform) else item.acquisition_time_stamp
        due = stamp * tick_ms / 1000
        now = time.monotonic()
        if start is None or abs(start + due - now) > LONGEST_PAUSE_S:
            start = now - due
        elif start + due > now:
            sleep(start + due - now)
        yield item


def _tick_ms(header_xml: str) -> float:
    system = read_header(header_xml).acquisitionSystemInformation
    vendor = (system.systemVendor or "") if system else ""
    return SIEMENS_TICK_MS if "siemens" in vendor.lower() else OTHER_TICK_MS


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpinstreamError(f"{path}: cannot be read as text: {error}") from error
