"""`spinstream evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.commands.options import DEVICES, EXISTING_FILE, FOLDER, note, parameters, progress
from pipelines.errors import SpinstreamError
from pipelines.session import Site


class _Zoom(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Y,X,SIZE."""

    name = "Y,X,SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        numbers = str(value).split(",")
        if len(numbers) != 3 or not all(number.strip().isdigit() for number in numbers):
            self.fail(f"expected first row, first column and edge in pixels as Y,X,SIZE, got {value!r}", param, ctx)
        return int(numbers[0]), int(numbers[1]), int(numbers[2])


@click.command("evaluate")
@click.argument("raw", type=EXISTING_FILE)
@click.option("-p", "--pipelines", required=True, metavar="NAME|FILE,...", help="See: spinstream pipelines.")
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the page and metrics.json.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
@click.option("--truth", type=EXISTING_FILE, help="NIfTI, .npz, MRD images or a simulated scan [the file's own truth].")
@click.option("--key", help="The array of an .npz truth, or the group of MRD images [the only one].")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property where it is.")
@click.option("--group", default="dataset", show_default=True, help="The measurement's group in the file.")
@click.option("--zoom", type=_Zoom(), help="First row, first column and edge of the zoom [where images differ most].")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw.")
def evaluate_command(
    raw: Path,
    pipelines: str,
    output: Path,
    overwrite: bool,
    truth: Path | None,
    key: str | None,
    settings: tuple[str, ...],
    group: str,
    zoom: tuple[int, int, int] | None,
    device: str,
    seed: int,
) -> None:
    """Compare the images of several pipelines with the truth."""
    from pipelines.evaluate import Evaluation, evaluate  # no other command needs matplotlib
    from pipelines.evaluation_report import report_folder, summary, write_report
    from pipelines.truth import brought_truth, own_truth

    names = [name.strip() for name in pipelines.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise click.UsageError(f"--pipelines {pipelines}: expected different names with commas between them")
    if key and not truth:
        raise click.UsageError("--key is for --truth FILE")
    job = Evaluation(
        raw=raw,
        pipelines=names,
        truth=brought_truth(truth, key) if truth else own_truth(raw),
        group=group,
        parameters=parameters(settings),
        zoom=zoom,
    )
    folder = report_folder(output, overwrite)
    with logging_redirect_tqdm():
        outcomes = evaluate(job, Site(device=device, seed=seed), note, progress)
    write_report(folder, job, outcomes)
    for line in summary(outcomes):
        click.echo(line)
    click.echo(f"{folder / 'index.html'}")
    failed = [name for name, outcome in outcomes.items() if outcome.error is not None]
    if failed:
        raise SpinstreamError(f"{len(failed)} of {len(outcomes)} pipelines failed: {', '.join(failed)}")
