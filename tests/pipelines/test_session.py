"""What the sessions of one site share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import ismrmrd
import psutil
import pytest
import torch

from gadgets.gadget import ACQUISITIONS, Gadget
from gadgets.imaging_model import encoding_of
from pipelines import session
from pipelines.definition import parse_definition
from pipelines.header import read_header
from pipelines.session import Site, open_chain

from mrd_items import HEADER_XML, acquisition, configuration
from phantom_scan import Phantom, spokes


class Encodes(Gadget[ismrmrd.Acquisition]):
    """Asks for what is built for a trajectory."""

    takes = ismrmrd.Acquisition
    needs = removes = frozenset({ACQUISITIONS})
    encodings: ClassVar[list] = []

    def take(self, item):
        self.encodings.append(encoding_of(Phantom.scanned(spokes(6)).frame(), self.session))
        return iter(())


@pytest.fixture
def site(site):
    return replace(site, registry={"Encodes": Encodes})


def encoding_in_a_session(site):
    """What a gadget gets for a trajectory that is made anew each time."""
    definition = parse_definition(configuration("Encodes").encode(), "encodes", local=True)
    chain = open_chain(definition, read_header(HEADER_XML), site, print)
    list(chain.run([acquisition()]))
    return Encodes.encodings.pop()


def test_sessions_share_what_was_built_for_a_trajectory(site):
    first = encoding_in_a_session(site)
    assert encoding_in_a_session(site) is first


def test_so_do_sessions_at_the_same_time(site):
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(encoding_in_a_session, [site] * 4)
    assert all(other is first for other in others)


def test_sites_share_nothing(site):
    first = encoding_in_a_session(site)
    assert encoding_in_a_session(replace(site)) is not first


@pytest.mark.parametrize(("device", "limit"), [("cpu", 2**33), ("auto", 2**30), ("cuda", 2**30)])
def test_the_cache_fits_the_device_that_is_used(monkeypatch, device, limit):
    """A site for the processor leaves the CUDA device alone, which to ask costs memory on it."""
    monkeypatch.setattr(session, "total_memory", lambda: 2**36)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**33))
    assert Site(device=device).cache.limit_bytes == limit


def test_sessions_that_share_a_machine_share_the_room_for_caches(site, monkeypatch):
    monkeypatch.setattr(session, "total_memory", lambda: 2**36)
    assert 4 * replace(site, sessions=4).cache.limit_bytes == replace(site, sessions=1).cache.limit_bytes


def test_the_cache_leaves_most_of_the_memory_to_others(site):
    assert 0 < site.cache.limit_bytes <= psutil.virtual_memory().total / 8
