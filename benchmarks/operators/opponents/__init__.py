"""One file per opponent, each with its `ROWS`; a file whose import fails is an opponent that is not installed."""

from __future__ import annotations

import importlib

from benchmarks.operators import ours
from benchmarks.operators.operator import Row

MODULES = ("finufft_plans", "kbnufft", "mrinufft_corrected", "mrpro_operators", "sigpy_linops", "bart_pics")


def installed_rows() -> list[Row]:
    """Ours first; says what is skipped, and why."""
    rows = list(ours.ROWS)
    for name in MODULES:
        try:
            rows += importlib.import_module(f"{__name__}.{name}").ROWS
        except ImportError as error:
            print(f"skipped {name}: {error}")
    return rows
