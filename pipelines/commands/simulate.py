"""`spinstream simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import FILE
from pipelines.errors import SpinstreamError
from pipelines.simulate import TRAJECTORIES, SimulationSettings, holds_truth, simulate


class _Matrix(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """N or NYxNX."""

    name = "N|NYxNX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        sizes = str(value).lower().split("x")
        if len(sizes) > 2 or not all(size.isdigit() for size in sizes):
            self.fail(f"expected N or NYxNX, got {value!r}", param, ctx)
        return int(sizes[0]), int(sizes[-1])


@click.command("simulate")
@click.argument("output", type=FILE)
@click.option("--trajectory", type=click.Choice(TRAJECTORIES), default="spiral", show_default=True)
@click.option("--matrix", type=_Matrix(), default="128", show_default=True, help="Image size.")
@click.option("--coils", type=int, default=8, show_default=True, help="Receive coils around the head.")
@click.option("--shots", type=int, help="Interleaves or spokes of the fully sampled trajectory [as many as it needs].")
@click.option("--acceleration", type=int, default=1, show_default=True, help="Plays out every R-th shot.")
@click.option("--readout-ms", type=float, help="Length of a readout [15.6 for spirals].")
@click.option("--dwell-us", type=float, default=4.0, show_default=True, help="Time between samples.")
@click.option(
    "--b0", default="0", show_default=True, metavar="HZ|FILE", help="99th percentile of a smooth field, or a map."
)
@click.option(
    "--noise", type=float, default=0.02, show_default=True, help="Relative to the image; see the file's truth."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw.")
@click.option("--image", metavar="FILE[:INDEX]", help="NIfTI or .npz instead of the built-in head.")
@click.option("--slices", type=int, default=1, show_default=True)
@click.option("--repetitions", type=int, default=1, show_default=True)
def simulate_command(output: Path, **settings: Any) -> None:
    """Simulate raw data of a head, with the truth beside them."""
    if output.exists() and not holds_truth(output):
        raise SpinstreamError(f"{output} exists and is not a simulated scan; it is not overwritten")
    simulate(output, SimulationSettings(**settings))
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
