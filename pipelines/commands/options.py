"""What several commands have in common: types of options, and how they talk to the person at the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import ismrmrd
from tqdm import tqdm

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
IMAGES = click.Path(exists=True, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
DEVICES = click.Choice(["auto", "cpu", "cuda"])


def note(text: str) -> None:
    """Prints what a pipeline tells, beside a progress bar."""
    with tqdm.external_write_mode():
        click.echo(f"note: {text}", err=True)


def progress(items: Iterable[ismrmrd.Acquisition], total: int) -> Iterable[ismrmrd.Acquisition]:
    """The items, with a progress bar where there is a terminal."""
    shown: Iterable[ismrmrd.Acquisition] = tqdm(items, total=total, unit=" readouts", disable=None, leave=False)
    return shown


def parameters(settings: Sequence[str]) -> dict[str, str]:
    """Properties by "gadget.property".

    Raises:
        UsageError: a setting is not GADGET.PROPERTY=VALUE, or given twice.
    """
    values = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or "." not in key:
            raise click.UsageError(f"--set {setting}: expected GADGET.PROPERTY=VALUE")
        if key in values:
            raise click.UsageError(f"--set {key} is given twice")
        values[key] = value
    return values


def address(text: str, option: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        UsageError: the text is not HOST:PORT.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"{option} {text}: expected HOST:PORT")
    return host.strip("[]"), int(port)
