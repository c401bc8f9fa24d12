"""`spinstream priors`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.options import EXISTING_FILE
from pipelines.errors import SpinstreamError
from pipelines.registry import nearest
from recon_core.priors.library import shipped_priors
from recon_core.priors.weights import Description, describe


@click.command()
@click.argument("files", type=EXISTING_FILE, nargs=-1)
@click.option("--card", metavar="NAME|FILE", help="Print the model card of this one.")
def priors(files: tuple[Path, ...], card: str | None) -> None:
    """List the priors that come with spinstream, and FILES of your own."""
    known = {**shipped_priors(), **{str(path): path for path in files}}
    if card is not None:
        path = _prior_file(card, known)
        click.echo(_described(path).card.to_markdown(path.stem))
        return
    if not known:
        click.echo("no prior comes with this installation; spinstream train makes one")
    for name, path in known.items():
        told = _described(path)
        convention = told.convention
        click.echo(f"{name:20s} {told.card.summary}")
        click.echo(
            f"{'':20s} {told.kind}, {path.stat().st_size / 1e6:.2g} MB, {told.card.licence}; noise "
            f"{convention.lowest:g} to {convention.highest:g} of the {convention.scale}"
        )


def _prior_file(name: str, known: dict[str, Path]) -> Path:
    if name in known:
        return known[name]
    if name.endswith(".safetensors"):
        return Path(name)
    raise SpinstreamError(
        f"no prior is called {name!r}{nearest(name, known)} "
        f"(there are: {', '.join(known) or 'none'}; or give a .safetensors file)"
    )


def _described(path: Path) -> Description:
    try:
        return describe(path)
    except OSError as error:
        raise SpinstreamError(f"cannot read the prior {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SpinstreamError(str(error)) from error
