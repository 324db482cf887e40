"""Listen with uvicorn: sockets of our own, and the limits on connections that it lacks."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from boardfit.edge.errors import InputError
from boardfit.edge.serve.app import RECEIPT_S, App
from boardfit.edge.serve.notify import notify
from boardfit.edge.serve.refused import not_ready
from boardfit.edge.serve.wire.base import dump, openai_error

MAX_CONNECTIONS = 64
#: Of these, kept for clients on this machine.
_RESERVED = 8
_MAX_HEADER_BYTES = 16 << 10
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class LimitedProtocol(H11Protocol):
    """One connection. A head that does not come in time ends it; too many are turned away."""

    _receipt: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = (transport.get_extra_info("peername") or ("",))[0]
        most = MAX_CONNECTIONS - (0 if peer in _LOOPBACK else _RESERVED)
        if len(self.connections) > most:
            body = dump(openai_error(not_ready("too many connections are open")))
            head = (
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                f"Retry-After: 1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            transport.write(head.encode() + body)
            transport.close()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete:
            self._expect_head()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._receipt is None:
            self._receipt = self.loop.call_later(RECEIPT_S, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._receipt is not None:
            self._receipt.cancel()
            self._receipt = None


def open_sockets(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets at each address, all on one port; 0 takes a free one.

    Raises InputError for a port in use or an address that is not this machine's.
    """
    opened: list[socket.socket] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            sock.listen(128)
        except OSError as error:
            if family == socket.AF_INET6 and opened:  # many a board has no IPv6
                continue
            for each in opened:
                each.close()
            raise InputError(
                f"cannot listen on {address} port {port}: {error.strerror or error}",
                next_step="choose another with --port, or 0 for a free one",
            ) from None
        port = sock.getsockname()[1]
        opened.append(sock)
    return opened


def run_server(
    app: App,
    sockets: list[socket.socket],
    started: Callable[[Callable[[], None]], None],
    ending: Callable[[], None],
) -> None:
    """Serve until SIGINT or SIGTERM. `started(stop)` is called once connections are answered;
    `stop` ends the server, from any thread. `ending` is called before answers are waited for.
    """
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    # uvicorn raises a caught signal again at its end, when there is still something to save.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: None) if is_main else None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, started, ending).run(sockets=sockets)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        started: Callable[[Callable[[], None]], None],
        ending: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._when_started, self._when_ending = started, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_started(self._stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        self._when_ending()
        await super().shutdown(sockets)

    def _stop(self) -> None:
        self.should_exit = True
