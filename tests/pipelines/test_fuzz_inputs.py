"""What strangers send or hand over: a valid result or a SpinstreamError, whatever it is.

For minutes and hours: `python -m benchmarks.faults.fuzz`.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.faults.inputs import TARGETS, Target, mutated
from pipelines.errors import SpinstreamError

IN_PYTHON = ["wire", "journal", "definition", "header", "json"]
EXAMPLES = {"wire": 200, "journal": 100, "definition": 100, "header": 100, "json": 200, "file": 1000}
DEADLINES = {"file": timedelta(seconds=30)}
"""libhdf5 is at some damaged files for 6 s, and for 12 on a busy machine."""

brief = settings(
    deadline=timedelta(seconds=5),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@lru_cache
def target(name: str) -> Target:
    return TARGETS[name]()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_taken(name):
    assert all(target(name).takes(raw) for raw in target(name).seeds)


@pytest.mark.parametrize("name", [*IN_PYTHON, pytest.param("file", marks=pytest.mark.slow)])
def test_damaged_inputs_are_taken_or_refused_with_a_reason(name):
    taken = []

    @settings(brief, max_examples=EXAMPLES[name], deadline=DEADLINES.get(name, brief.deadline))
    @given(st.randoms(use_true_random=False))
    def read(draw):
        taken.append(target(name).takes(mutated(draw, target(name))))

    read()
    assert {True, False} <= set(taken)  # neither all harmless nor all hopeless


@pytest.mark.parametrize("name", IN_PYTHON)
@settings(brief, max_examples=40)
@given(raw=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode(errors="replace"))))
def test_anything_else_is_taken_or_refused_with_a_reason(name, raw):
    target(name).takes(raw)


@pytest.mark.parametrize("part", [b"SNOD", b"TREE", b"HEAP", b"GCOL", b"</ismrmrdHeader>"])
def test_a_raw_file_with_a_broken_part_is_refused_with_a_reason(part):
    """HDF5 has an error of another type for each."""
    for raw in target("file").seeds:
        assert part in raw
        with pytest.raises(SpinstreamError):
            target("file").read(raw.replace(part, b"\xff" * len(part)))
