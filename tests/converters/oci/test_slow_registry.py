"""Registries that drip, and answers that nest without end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from boardfit.edge.errors import DeviceUnreachableError, InputError
from boardfit.edge.process.patience import LeastSpeed
from tests.converters.oci.conftest import connect


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on the loopback that reads a request and lets `answer` do the rest."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
                connection.recv(65536)
                answer(connection)
                connection.close()
            except OSError:
                continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        ended.set()
        listening.close()


def drip(data: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n"


def test_a_head_that_drips_has_a_total_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boardfit.converters.oci.registry._HEAD_S", 0.3)
    monkeypatch.setattr("boardfit.converters.oci.registry.TRIES", 2)
    began_s = time.monotonic()
    with (
        server(drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500)) as address,
        connect(address, "edge/drip") as registry,
        pytest.raises(DeviceUnreachableError, match="did not come in time"),
    ):
        registry.manifest()
    assert time.monotonic() - began_s < 20


def test_a_body_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "boardfit.converters.oci.registry.LeastSpeed", lambda least: LeastSpeed(least, 0.3)
    )

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        drip(b"x" * 300)(connection)

    with (
        server(answer) as address,
        connect(address, "edge/drip") as registry,
        pytest.raises(DeviceUnreachableError, match="less than 1024 bytes/s"),
    ):
        registry.manifest()


def test_an_error_that_nests_without_end_is_no_bug() -> None:
    body = b"[" * 60_000

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 60000\r\n\r\n" + body)

    with server(answer) as address, connect(address, "edge/nest") as registry:
        with pytest.raises(InputError, match="there is no"):
            registry.manifest()
        assert registry.tags() == []
