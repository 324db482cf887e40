"""What an engine needs from a model's vocabulary, and which tokens end an answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from boardfit.edge.errors import InputError

# Texts that end a sentence; those that the vocabulary has as one token are favoured.
ENDINGS = (*".!?…。！？।", ".\n", ".\n\n", "!\n", "?\n", '."', ".”", ".)")
# What is added to their logits, by pressure: a nudge, a push, and at 1 nothing else is left.
_LEVELS = ((0.0, 1.0), (0.34, 3.0), (0.67, 6.0), (1.0, 1e4))


class EngineVocabulary(ABC):
    """Text to token ids and back. The model asks for `bos` where `add_bos`."""

    n_tokens: int
    bos: int | None
    add_bos: bool
    bos_text: str
    eos_text: str
    template: str | None

    @property
    @abstractmethod
    def end_tokens(self) -> Sequence[int]:
        """Ids of the tokens that end a turn; empty where the vocabulary names none."""

    @abstractmethod
    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`, nothing added around it. Raises InputError for text not Unicode."""

    @abstractmethod
    def find_special(self, text: str) -> list[tuple[str, bool]]:
        """Tokens that are written out in `text`: how each is written, and whether it is a control
        token, which never stands for text.
        """

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes that a generated token stands for; b"" for special tokens."""

    @abstractmethod
    def written(self, token: int) -> str:
        """How a special token is written; "" for one without a text."""

    @abstractmethod
    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (end of text, of turn, of message …)."""

    def with_bos(self, tokens: list[int]) -> list[int]:
        """`tokens` behind `bos`, where the model asks for it and it is not there."""
        if self.add_bos and self.bos is not None and tokens[:1] != [self.bos]:
            return [self.bos, *tokens]
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without special tokens; bytes that are no UTF-8 become U+FFFD. Raises
        InputError for ids that are not in the vocabulary.
        """
        bad = next((token for token in tokens if not 0 <= token < self.n_tokens), None)
        if bad is not None:
            raise InputError(f"token {bad} is not in the vocabulary of {self.n_tokens}")
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")


def find_breaks(vocabulary: EngineVocabulary, text: str, *, is_own: bool, frame: str) -> list[int]:
    """Where to break `text`, so that no piece holds a special token that would be read from it.

    Tokens that are no control tokens stand for text (runs of spaces, tags of HTML) and stay, unless
    `frame`, the chat template, builds turns from them; in what the model wrote (`is_own`) always.
    """
    breaks: set[int] = set()
    for written, is_control in vocabulary.find_special(text):
        frames = len(written) > 2 and not written.isspace() and written in frame
        if len(written) < 2 or not (is_control or (frames and not is_own)):
            continue
        at = text.find(written)
        while at >= 0:
            breaks.add(at + 1)
            at = text.find(written, at + 1)
    if not breaks:
        return []
    # A piece may hold another one, which the first had hidden.
    for start, end in pairwise([0, *sorted(breaks), len(text)]):
        inner = find_breaks(vocabulary, text[start:end], is_own=is_own, frame=frame)
        breaks |= {start + at for at in inner}
    return sorted(breaks)


def encode_text(text: str) -> bytes:
    """UTF-8. Raises InputError for text that is not Unicode (lone surrogates)."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not valid Unicode at character {error.start}") from None


def closing_tokens(vocabulary: EngineVocabulary) -> list[int]:
    """Ids of the tokens that end a turn, and of those that stand for an ending on their own."""
    found = set(vocabulary.end_tokens)
    for text in ENDINGS:
        ids = vocabulary.tokenize(text, special=False)
        # A leading space that the tokenizer writes itself makes two tokens of one; the last counts.
        if ids and vocabulary.piece(ids[-1]).decode("utf-8", "replace") == text:
            found.add(ids[-1])
    return sorted(found)


def closing_bias(pressure: float) -> float:
    """What `pressure` (more than 0) adds to the logits of closing tokens."""
    return max(bias for start, bias in _LEVELS if pressure >= start)
