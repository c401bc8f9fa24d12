"""The command line: `spinstream COMMAND`. Every failure prints its reason and exits with a status other than 0."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import ismrmrd
from click.core import ParameterSource
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.definition import DEFINITIONS, available_definitions, load_definition
from pipelines.errors import SpinstreamError
from pipelines.registry import installed_gadgets, nearest
from pipelines.replay import Replay, local_definition, replay_here, replay_to
from pipelines.session import Site, read_header
from pipelines.simulate import TRAJECTORIES, SimulationSettings, holds_truth, simulate
from pipelines.sinks import open_sinks
from pipelines.streams.file import RawFile
from pipelines.streams.server import Limits, Server
from recon_core.priors.card import Source
from recon_core.priors.library import shipped_priors
from recon_core.priors.unet import SIZES
from recon_core.priors.weights import Description, describe

log = logging.getLogger("spinstream")

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
IMAGES = click.Path(exists=True, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
GRACE_SECONDS = 5.0
DEVICES = click.Choice(["auto", "cpu", "cuda"])


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
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, force=True)
    log.setLevel(level)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9002, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--device", type=DEVICES, default="auto", show_default=True, help="Where to compute.")
@click.option("--seed", default=0, show_default=True, help="Of every random draw.")
@click.option("--definitions", type=EXISTING_FOLDER, multiple=True, help="A further folder of pipeline definitions.")
@click.option("--sessions", default=16, show_default=True, type=click.IntRange(1), help="Clients at a time.")
@click.option(
    "--patience", default=600.0, show_default=True, type=click.FloatRange(0.1), help="Seconds a client may be silent."
)
def serve(
    host: str, port: int, device: str, seed: int, definitions: tuple[Path, ...], sessions: int, patience: float
) -> None:
    """Serve MRD clients (Gadgetron's protocol) until interrupted."""
    site = Site(device=device, seed=seed, definitions=(DEFINITIONS, *definitions))
    site.torch_device()
    try:
        server = Server(host, port, site, Limits(patience_s=patience, sessions=sessions))
    except OSError as error:
        raise SpinstreamError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with server:
        _stop_on_signals(server)
        click.echo("listening on {}:{}".format(*server.server_address[:2]))
        server.serve_forever()
        if not server.dismiss(GRACE_SECONDS):
            # The interpreter would abort while a gadget still computes in its thread.
            log.warning("a gadget was still at work")
            logging.shutdown()
            os._exit(0)


def _stop_on_signals(server: Server) -> None:
    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


@main.command()
@click.argument("raw", type=EXISTING_FILE)
@click.option("-p", "--pipeline", required=True, metavar="NAME|FILE", help="See: spinstream pipelines.")
@click.option("-o", "--output", type=FILE, help="Images as ISMRMRD .h5.")
@click.option("--dicom", type=FOLDER, help="Images as DICOM, one file each, into this folder.")
@click.option("--nifti", type=FOLDER, help="Images as NIfTI volumes into this folder.")
@click.option("--png", type=FOLDER, help="Images as PNG into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property.")
@click.option("--to", metavar="HOST:PORT", help="Stream to this MRD server instead of computing here.")
@click.option("--patience", default=3600.0, show_default=True, help="Seconds to wait for a silent server.")
@click.option("--group", default="dataset", show_default=True, help="The measurement's group in the file.")
@click.option("--realtime", is_flag=True, help="Pace the data by their time stamps.")
@click.option("--tick-ms", type=click.FloatRange(0.001), help="Length of a time stamp tick [2.5 for Siemens, else 1].")
@click.option("--device", type=DEVICES, help="Where to compute [auto]; not with --to.")
@click.option("--seed", type=int, help="Of every random draw [0]; not with --to.")
def replay(
    raw: Path,
    pipeline: str,
    output: Path | None,
    dicom: Path | None,
    nifti: Path | None,
    png: Path | None,
    overwrite: bool,
    settings: tuple[str, ...],
    to: str | None,
    patience: float,
    group: str,
    realtime: bool,
    tick_ms: float | None,
    device: str | None,
    seed: int | None,
) -> None:
    """Run the raw data of an ISMRMRD file through a pipeline."""
    if to and (device or seed is not None):
        raise click.UsageError("--device and --seed are the server's to choose when streaming with --to")
    if output and output.exists() and output.samefile(raw):
        raise click.UsageError(f"-o {output} is the raw file itself")
    if not (output or dicom or nifti or png):
        raise click.UsageError("nowhere to put the images: give -o, --dicom, --nifti or --png")
    job = Replay(
        raw=raw,
        pipeline=pipeline,
        group=group,
        parameters=_parameters(settings),
        realtime=realtime,
        tick_ms=tick_ms,
    )
    with RawFile(raw, group) as file:
        header = read_header(file.header_xml)
        with open_sinks(header, output, dicom, nifti, png, overwrite) as sinks, logging_redirect_tqdm():
            if to:
                replay_to(_address(to), job, file, sinks.write, _note, _progress, patience)
            else:
                site = Site(device=device or "auto", seed=seed or 0)
                replay_here(job, file, site, sinks.write, _note, _progress)
    if not sinks.images:
        raise SpinstreamError(f"{raw}: the pipeline ran to its end, but no image came out; see its notes above")
    click.echo(f"{sinks.images} images")


class _Zoom(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Y,X,SIZE."""

    name = "Y,X,SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        numbers = str(value).split(",")
        if len(numbers) != 3 or not all(number.strip().isdigit() for number in numbers):
            self.fail(f"expected first row, first column and edge in pixels as Y,X,SIZE, got {value!r}", param, ctx)
        return int(numbers[0]), int(numbers[1]), int(numbers[2])


@main.command("evaluate")
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
        parameters=_parameters(settings),
        zoom=zoom,
    )
    folder = report_folder(output, overwrite)
    with logging_redirect_tqdm():
        outcomes = evaluate(job, Site(device=device, seed=seed), _note, _progress)
    write_report(folder, job, outcomes)
    for line in summary(outcomes):
        click.echo(line)
    click.echo(f"{folder / 'index.html'}")
    failed = [name for name, outcome in outcomes.items() if outcome.error is not None]
    if failed:
        raise SpinstreamError(f"{len(failed)} of {len(outcomes)} pipelines failed: {', '.join(failed)}")


def _note(text: str) -> None:
    with tqdm.external_write_mode():
        click.echo(f"note: {text}", err=True)


def _progress(items: Iterable[ismrmrd.Acquisition], total: int) -> Iterable[ismrmrd.Acquisition]:
    shown: Iterable[ismrmrd.Acquisition] = tqdm(items, total=total, unit=" readouts", disable=None, leave=False)
    return shown


def _parameters(settings: Sequence[str]) -> dict[str, str]:
    parameters = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise click.UsageError(f"--set {setting}: expected GADGET.PROPERTY=VALUE")
        if key in parameters:
            raise click.UsageError(f"--set {key} is given twice")
        parameters[key] = value
    return parameters


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--to {text}: expected HOST:PORT")
    return host.strip("[]"), int(port)


class _Matrix(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """N or NYxNX."""

    name = "N|NYxNX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        sizes = str(value).lower().split("x")
        if len(sizes) > 2 or not all(size.isdigit() for size in sizes):
            self.fail(f"expected N or NYxNX, got {value!r}", param, ctx)
        return int(sizes[0]), int(sizes[-1])


@main.command("simulate")
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


@main.command()
@click.argument("file", metavar="NAME|FILE")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property.")
def validate(file: str, settings: tuple[str, ...]) -> None:
    """Check a pipeline definition without running it."""
    definition = local_definition(file, Site()).override(_parameters(settings), "--set", local=True)
    chain = definition.build(installed_gadgets())
    click.echo(f"{file}: {' -> '.join(type(gadget).__name__ for gadget in chain)}")


@main.command()
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


class _Source(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """NAME; LICENCE; CITATION."""

    name = "NAME; LICENCE; CITATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Source:
        parts = [part.strip() for part in str(value).split(";")]
        if len(parts) != 3 or not all(parts):
            self.fail(f"expected three parts, NAME; LICENCE; CITATION, got {value!r}", param, ctx)
        return Source(*parts)


@main.command("train")
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


@main.command()
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


@main.command()
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


if __name__ == "__main__":
    sys.exit(main())
