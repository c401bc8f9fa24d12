"""A client that says exactly what it is given, byte by byte where that matters."""

from __future__ import annotations

import socket
import struct
import threading

from pipelines.wire import Close, Connection, Text


def packed(number: int, text: bytes) -> bytes:
    return struct.pack("<HI", number, len(text)) + text


def converse(address, *messages, close: bool = True) -> list:
    """Sends messages or raw bytes, then reads everything up to the server's close."""
    with socket.create_connection(address) as sock, Connection(sock, 10.0) as connection:
        sender = threading.Thread(target=_send, args=(sock, connection, messages, close), daemon=True)
        sender.start()
        got = []
        while not isinstance(message := connection.receive(), Close):
            got.append(message)
        sender.join()
    return got


def _send(sock, connection, messages, close) -> None:
    for message in messages:
        if isinstance(message, bytes):
            sock.sendall(message)
        else:
            connection.send(message)
    if close:
        connection.send(Close())
    else:
        connection.hang_up()


def texts(messages, prefix: str) -> list[str]:
    return [m.text.removeprefix(prefix).strip() for m in messages if isinstance(m, Text) and m.text.startswith(prefix)]
