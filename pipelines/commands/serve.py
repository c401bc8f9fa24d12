"""`spinstream serve`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import click

from pipelines.commands.options import DEVICES, EXISTING_FOLDER
from pipelines.definition import DEFINITIONS
from pipelines.errors import SpinstreamError
from pipelines.session import Site
from pipelines.streams.server import Limits, Server

log = logging.getLogger("spinstream")

GRACE_SECONDS = 5.0


@click.command()
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
