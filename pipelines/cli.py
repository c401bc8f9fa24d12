"""The command line: `spinstream COMMAND`. Every failure prints its reason and exits with a status other than 0."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from pipelines.commands.definitions import gadgets, pipelines, validate
from pipelines.commands.evaluate import evaluate_command
from pipelines.commands.priors import priors
from pipelines.commands.recordings import recordings_command
from pipelines.commands.replay import replay
from pipelines.commands.serve import serve
from pipelines.commands.simulate import simulate_command
from pipelines.commands.train import train_command
from pipelines.errors import SpinstreamError
from pipelines.logs import configure


class _Commands(click.Group):
    """Turns our errors into a message and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpinstreamError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spinstream")
@click.option("-v", "--verbose", is_flag=True, help="Log what each gadget does.")
def main(verbose: bool) -> None:
    """MRI reconstruction at the scanner: raw MRD data stream in, images stream out."""
    configure(logging.DEBUG if verbose else logging.INFO)


for command in (
    serve,
    replay,
    recordings_command,
    evaluate_command,
    simulate_command,
    validate,
    pipelines,
    gadgets,
    train_command,
    priors,
):
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
