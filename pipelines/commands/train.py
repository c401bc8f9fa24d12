"""`spinstream train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipelines.commands.options import DEVICES, FILE, IMAGES
from pipelines.session import Site
from recon_core.priors.card import Source
from recon_core.priors.unet import SIZES


class _Source(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """NAME; LICENCE; CITATION."""

    name = "NAME; LICENCE; CITATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Source:
        parts = [part.strip() for part in str(value).split(";")]
        if len(parts) != 3 or not all(parts):
            self.fail(f"expected three parts, NAME; LICENCE; CITATION, got {value!r}", param, ctx)
        return Source(*parts)


@click.command("train")
@click.argument("kind", type=click.Choice(["unet", "pogmdm"]))
@click.option("--data", type=IMAGES, multiple=True, required=True, help="Images to learn from; may be given again.")
@click.option("-o", "--output", type=FILE, required=True, help="The weights, .safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace existing weights that have no checkpoint.")
@click.option(
    "--validation",
    type=IMAGES,
    multiple=True,
    help="Images to select by [a twentieth of the data files, from their middle; of a single file, of its slices].",
)
@click.option("--key", help="The one array to take of .npz files [all]; other files have one.")
@click.option("--objective", type=click.Choice(["clean", "sure"]), default="clean", show_default=True)
@click.option(
    "--noise",
    type=click.FloatRange(0, min_open=True),
    help="For sure: the noise in the images, standard deviation of the real part, in the files' units [estimated].",
)
@click.option("--size", type=click.Choice([*SIZES]), default="small", show_default=True, help="Of the U-Net.")
@click.option("--start", metavar="PRIOR", help="A U-Net to go on from, such as head_unet [random weights].")
@click.option("--steps", type=click.IntRange(1), help="Of the optimiser [as many as suit the kind].")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Of every random draw.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--summary", default="A prior of its user's own images.", help="For the model card: one line.")
@click.option("--licence", default="not stated", help="For the model card: of the weights.")
@click.option("--source", "sources", type=_Source(), multiple=True, help="For the model card: where images came from.")
@click.pass_context
def train_command(
    context: click.Context, /, device: str, data: tuple[Path, ...], output: Path, kind: str, **settings: Any
) -> None:
    """Train a prior on .nii, .npz and .npy images; the same command resumes what was interrupted."""
    from pipelines.training import TrainingJob, train  # no other command needs matplotlib

    if output.suffix != ".safetensors":
        raise click.UsageError(f"-o {output}: expected a name that ends in .safetensors")
    if kind == "pogmdm" and (settings["size"] != "small" or settings["start"]):
        raise click.UsageError("--size and --start are for the U-Net; a pogmdm has one size")
    if settings["noise"] and settings["objective"] == "clean":
        raise click.UsageError("--noise is for --objective sure; clean images have none")
    job = TrainingJob(
        kind=kind,
        data=data,
        output=output,
        device=Site(device=device).torch_device(),
        command=_command(context),
        **settings,
    )
    for name, value in train(job).items():
        click.echo(f"{name:50s} {value:.4g}")
    click.echo(f"{output}: {output.stat().st_size / 1e6:.2g} MB; beside it its card, curve and samples")


def _command(context: click.Context) -> str:
    """What was typed, without the folders of this machine."""
    words = ["spinstream", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values = context.params[name] if parameter.multiple else [context.params[name]]
            flag = [parameter.opts[-1]] if isinstance(parameter, click.Option) else []
            words += [word for value in values for word in (*flag, *_words(name, value))]
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    """The value of a parameter as typed: none for a flag."""
    if value is True:
        return []
    if isinstance(value, Source):
        return [f"{value.name}; {value.licence}; {value.citation}"]
    # A prior to start from may be a path as well; the other texts keep their slashes.
    return [Path(value).name if isinstance(value, Path) or name == "start" else str(value)]
