"""`spinstream recordings`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import EXISTING_FOLDER
from pipelines.errors import SpinstreamError
from pipelines.recordings import Entry, Recordings

GIB = 1 << 30


@click.command("recordings")
@click.argument("folder", type=EXISTING_FOLDER)
@click.option("--finish", is_flag=True, help="Make .h5 files of journals that a killed server left behind.")
@click.option("--prune-days", type=click.FloatRange(0), help="Remove finished recordings that are older.")
@click.option("--prune-gib", type=click.FloatRange(0), help="Remove the oldest finished ones beyond this size of all.")
def recordings_command(folder: Path, finish: bool, prune_days: float | None, prune_gib: float | None) -> None:
    """List what `spinstream serve --record FOLDER` has recorded; times are UTC."""
    recordings = Recordings(folder, prune_days, None if prune_gib is None else int(prune_gib * GIB))
    removed = recordings.prune()  # before, since what is finished needs room, and after, since it takes some
    left = recordings.recover() if finish else []
    for path in [*removed, *recordings.prune()]:
        click.echo(f"{path.name} removed")
    for entry in recordings.entries():
        click.echo(_line(entry))
    if left:
        raise SpinstreamError(f"{len(left)} journals could not be finished; the reasons stand above")


def _line(entry: Entry) -> str:
    count = "?" if entry.acquisitions is None else entry.acquisitions
    line = f"{entry.path.name:30s} {entry.state:9s} {entry.bytes / 1e6:10.1f} MB {count:>8} readouts  {entry.pipeline}"
    return f"{line}\n{'':30s} {entry.problem}" if entry.problem and entry.state != "recording" else line
