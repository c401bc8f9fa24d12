"""`spinstream replay`."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from gadgets.gadget import Header
from pipelines.commands.options import DEVICES, EXISTING_FILE, FOLDER, address, note, parameters, progress
from pipelines.errors import SpinstreamError
from pipelines.header import read_header
from pipelines.replay import Progress, Replay, replay_here, replay_to
from pipelines.replay_folder import raw_files, replay_files, table
from pipelines.session import Site
from pipelines.sinks import Sinks, open_sinks
from pipelines.streams.file_apart import open_raw_apart
from pipelines.streams.tls import client_context

PATH = click.Path(path_type=Path)
FILES_AT_ONCE = 4
"""Of a folder, where a cluster computes: while one file is read, frames of others are solved."""


@click.command()
@click.argument("raw", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-p",
    "--pipeline",
    metavar="NAME|FILE",
    help="See: spinstream pipelines [of a recording, what its client asked for].",
)
@click.option("-o", "--output", type=PATH, help="Images as ISMRMRD .h5; of a folder, a folder.")
@click.option("--dicom", type=FOLDER, help="Images as DICOM, one file each, into this folder.")
@click.option("--nifti", type=FOLDER, help="Images as NIfTI volumes into this folder.")
@click.option("--png", type=FOLDER, help="Images as PNG into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property.")
@click.option("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers compute frames: tcp://HOST:8786.")
@click.option("--to", metavar="HOST:PORT", help="Stream to this MRD server instead of computing here.")
@click.option("--tls-ca", type=EXISTING_FILE, help="Speak TLS to a server whose certificate these have signed (PEM).")
@click.option("--tls-cert", type=EXISTING_FILE, help="Certificate to show to that server (PEM).")
@click.option("--tls-key", type=EXISTING_FILE, help="Its key (PEM, without a password).")
@click.option("--patience", default=3600.0, show_default=True, help="Seconds to wait for a silent server.")
@click.option("--group", default="dataset", show_default=True, help="The measurement's group in the file.")
@click.option("--realtime", is_flag=True, help="Pace the data by their time stamps.")
@click.option("--tick-ms", type=click.FloatRange(0.001), help="Length of a time stamp tick [2.5 for Siemens, else 1].")
@click.option("--device", type=DEVICES, help="Where to compute [auto]; not with --to.")
@click.option("--seed", type=int, help="Of every random draw [0]; not with --to.")
def replay(
    raw: Path,
    pipeline: str | None,
    output: Path | None,
    dicom: Path | None,
    nifti: Path | None,
    png: Path | None,
    overwrite: bool,
    settings: tuple[str, ...],
    cluster: str | None,
    to: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    patience: float,
    group: str,
    realtime: bool,
    tick_ms: float | None,
    device: str | None,
    seed: int | None,
) -> None:
    """Run raw data through a pipeline: an ISMRMRD file, a recording in any state, or all of these in a folder.

    Images of a folder's files are named after them. A file that fails does not stop the others.
    """
    if to and (device or seed is not None or cluster):
        raise click.UsageError("--device, --seed and --cluster are the server's to choose when streaming with --to")
    tls = _tls(to, tls_ca, tls_cert, tls_key)
    if not any([output, dicom, nifti, png]):
        raise click.UsageError("nowhere to put the images: give -o, --dicom, --nifti or --png")
    if output and output.exists() and output.samefile(raw):
        raise click.UsageError(f"-o {output} is the raw {'folder' if raw.is_dir() else 'file'} itself")
    if output and output.exists() and output.is_dir() != raw.is_dir():
        kinds = ("folder", "file") if raw.is_dir() else ("file", "folder")
        raise click.UsageError(f"-o {output}: {raw} is a {kinds[0]}, so expected a {kinds[0]}, got a {kinds[1]}")
    values = parameters(settings)
    server = address(to, "--to") if to else None
    site = Site(device=device or "auto", seed=seed or 0, cluster=cluster)

    def run(path: Path, outputs: Outputs, note: Callable[[str], None], show: Progress) -> int:
        job = Replay(
            raw=path,
            pipeline=pipeline,
            group=group,
            parameters=values,
            realtime=realtime,
            tick_ms=tick_ms,
        )
        with open_raw_apart(path, group) as file, outputs.opened(read_header(file.header_xml)) as sinks:
            try:
                if server:
                    replay_to(server, job, file, sinks.write, note, show, patience, tls)
                else:
                    replay_here(job, file, site, sinks.write, note, show)
            except SpinstreamError as error:
                raise type(error)(f"{error}\n{sinks.images} images had come, and are kept") from error
        if not sinks.images:
            raise SpinstreamError(f"{path}: the pipeline ran to its end, but no image came out; see its notes above")
        return sinks.images

    outputs = Outputs(output, dicom, nifti, png, overwrite)
    with logging_redirect_tqdm():
        if raw.is_dir():
            _folder(raw, run, outputs, FILES_AT_ONCE if cluster else 1)
        else:
            click.echo(f"{run(raw, outputs, note, progress)} images")


@dataclass(frozen=True)
class Outputs:
    """Where images go."""

    mrd: Path | None
    dicom: Path | None
    nifti: Path | None
    png: Path | None
    overwrite: bool

    def opened(self, header: Header) -> Sinks:
        """To write to."""
        return open_sinks(header, self.mrd, self.dicom, self.nifti, self.png, self.overwrite)

    def of(self, name: str) -> Outputs:
        """Of one file where these are the folders for all."""
        if self.mrd:
            self.mrd.mkdir(parents=True, exist_ok=True)
        mrd, dicom, nifti, png = (folder and folder / name for folder in (self.mrd, self.dicom, self.nifti, self.png))
        return Outputs(mrd and mrd.with_name(f"{name}.h5"), dicom, nifti, png, self.overwrite)


def _folder(
    folder: Path,
    run: Callable[[Path, Outputs, Callable[[str], None], Progress], int],
    outputs: Outputs,
    at_once: int,
) -> None:
    def one(name: str, path: Path) -> int:
        return run(path, outputs.of(name), lambda text: note(f"{path.name}: {text}"), lambda items, _: items)

    files = raw_files(folder)
    results = replay_files(files, one, at_once, lambda result: note(str(result)))
    click.echo("\n".join(table(results)))
    failed = [result.file for result in results if result.error is not None]
    if failed:
        raise SpinstreamError(f"{len(failed)} of {len(files)} files failed: {', '.join(failed)}")


def _tls(to: str | None, ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca is None:
        if cert or key:
            raise click.UsageError("--tls-cert and --tls-key need --tls-ca, which says whose servers to trust")
        return None
    if not to:
        raise click.UsageError("--tls-ca is for streaming to a server with --to")
    if (cert is None) != (key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    return client_context(ca, cert, key)
