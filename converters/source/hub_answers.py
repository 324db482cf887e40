"""Answers of a model hub, read up to a limit: a listing, or the first bytes of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_TIMEOUT_S = 20
_BLOCK_BYTES = 1 << 16


class TooLongError(Exception):
    """More bytes come than were announced, or than an answer may have."""


def read_listing(url: str, token: str | None, most: int) -> bytes:
    """The whole body at `url`, with what is known of each file. Raises TooLongError after `most`
    bytes, and the errors of huggingface_hub.
    """
    with _open(url, token, {}, {"blobs": "true"}) as (answer, blocks):
        body = _collect(blocks, most + 1)
        if len(body) > most:
            raise TooLongError
        _raise_for_status(answer, body)
        return body


def read_start(url: str, token: str | None, n_bytes: int) -> bytes:
    """The first `n_bytes` of a file. Raises the errors of huggingface_hub."""
    # A server that does not know ranges sends all of it: reading ends here all the same.
    wanted = {"Range": f"bytes=0-{n_bytes - 1}", "Accept-Encoding": "identity"}
    with _open(url, token, wanted, {}) as (answer, blocks):
        body = _collect(blocks, n_bytes)
        _raise_for_status(answer, body)
        return body[:n_bytes]


@contextlib.contextmanager
def _open(
    url: str, token: str | None, headers: Mapping[str, str], params: Mapping[str, str]
) -> Iterator[tuple[Any, Iterable[bytes]]]:
    """The answer and its blocks. huggingface_hub speaks through requests, httpx or httpx2."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
    )

    session: Any = get_session()
    options: dict[str, Any] = {
        "headers": {**build_hf_headers(token=token, library_name="boardfit"), **headers},
        "params": params or None,
        "timeout": _TIMEOUT_S,
    }
    if callable(getattr(session, "stream", None)):  # a flag in requests
        with session.stream("GET", url, follow_redirects=True, **options) as answer:
            yield answer, answer.iter_bytes(_BLOCK_BYTES)
    else:
        with session.get(url, stream=True, **options) as answer:
            yield answer, answer.iter_content(_BLOCK_BYTES)


def _collect(blocks: Iterable[bytes], most: int) -> bytes:
    body = bytearray()
    for block in blocks:
        body += block
        if len(body) >= most:
            break
    return bytes(body)


def _raise_for_status(answer: Any, body: bytes) -> None:
    """As huggingface_hub does, which looks for the cause of an error in the body."""
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    answer._content = body  # where all three libraries keep a body that was read
    hf_raise_for_status(answer)
