"""`spinstream validate`, `pipelines` and `gadgets`: what can be run."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from pipelines.commands.options import FOLDER, parameters
from pipelines.definition import DEFINITIONS, available_definitions, load_definition
from pipelines.errors import SpinstreamError
from pipelines.registry import installed_gadgets, nearest
from pipelines.replay import local_definition
from pipelines.session import Site


@click.command()
@click.argument("file", metavar="NAME|FILE")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property.")
def validate(file: str, settings: tuple[str, ...]) -> None:
    """Check a pipeline definition without running it."""
    definition = local_definition(file, Site()).override(parameters(settings), "--set", local=True)
    chain = definition.build(installed_gadgets())
    click.echo(f"{file}: {' -> '.join(type(gadget).__name__ for gadget in chain)}")


@click.command()
@click.option("--export", type=FOLDER, help="Write the definitions to this folder, such as Gadgetron's config folder.")
@click.option("--overwrite", is_flag=True, help="Replace definitions that were changed there.")
def pipelines(export: Path | None, overwrite: bool) -> None:
    """List the installed pipelines."""
    for name, path in available_definitions([DEFINITIONS]).items():
        click.echo(f"{name:24s} {load_definition(path).description}")
        if export:
            click.echo(f"{'':24s} -> {_exported(path, export, overwrite)}")


def _exported(path: Path, folder: Path, overwrite: bool) -> Path:
    target = folder / path.name
    if target.exists() and target.read_bytes() != path.read_bytes() and not overwrite:
        raise SpinstreamError(f"{target} exists with other content; --overwrite replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    return target


@click.command()
@click.argument("name", required=False)
def gadgets(name: str | None) -> None:
    """List the installed gadgets, or the properties of one."""
    known = installed_gadgets()
    if name is None:
        for key, gadget in known.items():
            click.echo(f"{key:20s} {gadget.summary()}")
        return
    if name not in known:
        raise SpinstreamError(f"no gadget is called {name!r}{nearest(name, known)} (there are: {', '.join(known)})")
    gadget = known[name]
    click.echo(f"{name}: {gadget.summary()}")
    for word, parts in (("needs", gadget.needs), ("adds", gadget.adds), ("takes away", gadget.removes)):
        if parts:
            click.echo(f"  {word}: {', '.join(sorted(parts))}")
    for key, declared in gadget.properties().items():
        click.echo(f"\n  {key} = {declared.default_text}\n      {declared.meaning}\n      expects {declared.expected}")
