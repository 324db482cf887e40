"""The device side of adb over TCP, enough of it for Debian's real `adb` to talk to.

    python adb_peer.py [--secure] PORT [RUNNER...]

Commands run as `RUNNER sh -c …`. With a runner such as `chroot ROOT` a whole arm64 system answers,
without one commands run here. Messages as in AOSP's `packages/modules/adb/protocol.txt`, services
as in `SERVICES.TXT`. `--secure` asks for a key that it never accepts: the device stays
unauthorized; `--silent` never says a word: it is offline.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import socket
import struct
import subprocess
import sys
import threading

MAX_DATA = 256 * 1024
VERSION = 0x01000001
BANNER = (
    b"device::ro.product.name=edge;ro.product.model=Peer;ro.product.device=peer;"
    b"features=shell_v2,cmd,fixed_push_mkdir"
)
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4


class Connection:
    """One host. Each OPEN starts a thread."""

    def __init__(self, link: socket.socket, runner: list[str], secure: bool) -> None:
        self.link, self.runner, self.secure = link, runner, secure
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        head = struct.pack(
            "<4sIIIII", command, first, second, len(data), sum(data) & 0xFFFFFFFF, magic
        )
        with self._sending:
            self.link.sendall(head + data)

    def _exactly(self, n_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < n_bytes:
            chunk = self.link.recv(n_bytes - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                command, first, second, size, _, _ = struct.unpack("<4sIIIII", self._exactly(24))
                self._take(command, first, second, self._exactly(size))
        for stream in list(self._streams.values()):
            stream.hang_up()

    def _take(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if self.secure:
            # Neither a signature (2) is accepted nor the public key (3): nobody answers the dialog.
            if command == b"CNXN" or (command == b"AUTH" and first == 2):
                self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"CNXN":
            self.send(b"CNXN", VERSION, MAX_DATA, BANNER + b"\0")
        elif command == b"OPEN":
            stream = Stream(self, self._next, first)
            self._streams[self._next] = stream
            self._next += 1
            self.send(b"OKAY", stream.ours, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=stream.serve, args=(service,), daemon=True).start()
        elif command == b"WRTE":
            if found := self._streams.get(second):
                found.incoming.put(data)
                self.send(b"OKAY", second, first)
            else:
                self.send(b"CLSE", 0, first)
        elif command == b"OKAY" and (found := self._streams.get(second)):
            found.acknowledged.set()
        elif command == b"CLSE" and (found := self._streams.pop(second, None)):
            found.hang_up()

    def forget(self, ours: int, theirs: int) -> None:
        if self._streams.pop(ours, None) is not None:
            with contextlib.suppress(OSError):
                self.send(b"CLSE", ours, theirs)


class Stream:
    """One service in use."""

    def __init__(self, connection: Connection, ours: int, theirs: int) -> None:
        self.connection, self.ours, self.theirs = connection, ours, theirs
        self.incoming: queue.Queue[bytes | None] = queue.Queue()
        self.acknowledged = threading.Event()
        self._buffer = b""
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def hang_up(self) -> None:
        """The host has gone: what runs for it goes too, as adbd does it."""
        self._closed.set()
        self.incoming.put(None)
        self.acknowledged.set()
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 1)

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), MAX_DATA):
            if self._closed.is_set():
                return
            self.acknowledged.clear()
            self.connection.send(b"WRTE", self.ours, self.theirs, data[at : at + MAX_DATA])
            self.acknowledged.wait()

    def read(self, n_bytes: int) -> bytes:
        while len(self._buffer) < n_bytes:
            chunk = self.incoming.get()
            if chunk is None:
                raise EOFError
            self._buffer += chunk
        data, self._buffer = self._buffer[:n_bytes], self._buffer[n_bytes:]
        return data

    def serve(self, service: str) -> None:
        kind, _, rest = service.partition(":")
        with contextlib.suppress(EOFError, OSError):
            if kind.startswith("shell,v2"):
                self._shell(rest)
        self.connection.forget(self.ours, self.theirs)

    # ---- shell protocol, version 2 ------------------------------------------------------------

    def _shell(self, command: str) -> None:
        self._process = process = subprocess.Popen(
            [*self.connection.runner, "sh", "-c", command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        pumps = [
            threading.Thread(target=self._pump, args=(process.stdout, STDOUT), daemon=True),
            threading.Thread(target=self._pump, args=(process.stderr, STDERR), daemon=True),
        ]
        threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        self.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))

    def _pump(self, source, kind: int) -> None:  # type: ignore[no-untyped-def]
        lock = self.__dict__.setdefault("_packets", threading.Lock())
        while chunk := source.read(32768):
            with lock:
                self.write(struct.pack("<BI", kind, len(chunk)) + chunk)

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, size = struct.unpack("<BI", self.read(5))
                data = self.read(size)
                if kind == STDIN:
                    process.stdin.write(data)
                elif kind == CLOSE_STDIN:
                    break
        with contextlib.suppress(OSError):
            process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("runner", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", options.port))
    server.listen()
    print(server.getsockname()[1], flush=True)
    silent: list[socket.socket] = []
    while True:
        link, _ = server.accept()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.silent:
            silent.append(link)
            continue
        connection = Connection(link, options.runner, options.secure)
        threading.Thread(target=connection.serve, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
