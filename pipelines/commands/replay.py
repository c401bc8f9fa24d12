"""`spinstream replay`."""

from __future__ import annotations

import ssl
from pathlib import Path

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.commands.options import DEVICES, EXISTING_FILE, FILE, FOLDER, address, note, parameters, progress
from pipelines.errors import SpinstreamError
from pipelines.replay import Replay, replay_here, replay_to
from pipelines.session import Site, read_header
from pipelines.sinks import open_sinks
from pipelines.streams.file import open_raw
from pipelines.streams.tls import client_context


@click.command()
@click.argument("raw", type=EXISTING_FILE)
@click.option(
    "-p",
    "--pipeline",
    metavar="NAME|FILE",
    help="See: spinstream pipelines [of a recording, what its client asked for].",
)
@click.option("-o", "--output", type=FILE, help="Images as ISMRMRD .h5.")
@click.option("--dicom", type=FOLDER, help="Images as DICOM, one file each, into this folder.")
@click.option("--nifti", type=FOLDER, help="Images as NIfTI volumes into this folder.")
@click.option("--png", type=FOLDER, help="Images as PNG into this folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
@click.option("--set", "settings", multiple=True, metavar="GADGET.PROPERTY=VALUE", help="Set a property.")
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
    """Run the raw data of an ISMRMRD file, or of a recording in any state, through a pipeline."""
    if to and (device or seed is not None):
        raise click.UsageError("--device and --seed are the server's to choose when streaming with --to")
    tls = _tls(to, tls_ca, tls_cert, tls_key)
    if output and output.exists() and output.samefile(raw):
        raise click.UsageError(f"-o {output} is the raw file itself")
    if not (output or dicom or nifti or png):
        raise click.UsageError("nowhere to put the images: give -o, --dicom, --nifti or --png")
    job = Replay(
        raw=raw,
        pipeline=pipeline,
        group=group,
        parameters=parameters(settings),
        realtime=realtime,
        tick_ms=tick_ms,
    )
    with open_raw(raw, group) as file:
        header = read_header(file.header_xml)
        with open_sinks(header, output, dicom, nifti, png, overwrite) as sinks, logging_redirect_tqdm():
            if to:
                replay_to(address(to), job, file, sinks.write, note, progress, patience, tls)
            else:
                site = Site(device=device or "auto", seed=seed or 0)
                replay_here(job, file, site, sinks.write, note, progress)
    if not sinks.images:
        raise SpinstreamError(f"{raw}: the pipeline ran to its end, but no image came out; see its notes above")
    click.echo(f"{sinks.images} images")


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
