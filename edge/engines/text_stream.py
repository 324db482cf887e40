"""Bytes of tokens to text that may be shown: characters are held back until complete, and text
that may turn out to be the beginning of a stop string until it is clear that it is not.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Fed with the bytes of one token at a time; `stopped` once a stop string has come by."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        # Invalid bytes must not end a generation: they become U+FFFD, as in every terminal.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Text that is safe to show after this token; what follows a stop string is dropped."""
        text = self._decoder.decode(piece)
        if not self._stop:
            return text
        return self._release(self._held + text)

    def flush(self) -> str:
        """What is still held when generation ends for another reason than a stop string."""
        if self.stopped:
            return ""
        rest = self._decoder.decode(b"", True)
        if not self._stop:
            return rest
        text = self._release(self._held + rest)
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        # The stop string that is complete first counts, so that it does not matter how the text
        # was cut into tokens; of several that end together, the longest.
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
