"""Texts for a quality card: the named text, a user's own, and the sample model's domain."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.sample.examples import read_conversations
from boardfit.converters.spec import ModelSpec
from boardfit.edge.errors import UsageError
from boardfit.edge.files.kind import read_regular_text
from boardfit.edge.types import Engine, Message
from boardfit.edge.units import printable

#: Our own words, Apache-2.0 like the rest: prose, dialogue, a table, code, three other languages.
DEFAULT_TEXT = "boardfit-reference-text-1"
#: Requests and answers of the sample model's world, in wordings that training does not show.
SAMPLE_TEXT = "boardfit-sample-conversations-1"

_MAX_TEXT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class QualityText:
    """A named text: `conversations` are read through the chat template, or `content` plainly.
    `sha256` is of the content, or of the conversations as JSON. Of conversations only the answers
    count: a model that was trained on answers alone has nothing to add about the questions.
    """

    name: str
    sha256: str
    content: str = ""
    conversations: tuple[tuple[Message, ...], ...] = ()

    def tokens(self, engine: Engine) -> tuple[list[int], list[bool]]:
        """Token ids in the model's vocabulary, the first BOS where the vocabulary asks for it, and
        for each whether its prediction counts.

        Raises UnsupportedModelError when conversations are read and the model has no template.
        """
        if self.content:
            tokens = engine.prompt(self.content)
            return tokens, [True] * len(tokens)
        all_tokens: list[int] = []
        counts: list[bool] = []
        for talk in self.conversations:
            tokens, counted = engine.render(list(talk), generate=False), 0
            for i, turn in enumerate(talk):
                if turn.role == "assistant":
                    asked = len(engine.render(list(talk[:i])))
                    # The answer and the token that ends it; what templates add after that is
                    # never generated.
                    n_answer = engine.count(turn.content) + 1
                    counts += [False] * (asked - counted) + [True] * n_answer
                    counted = asked + n_answer
            counts += [False] * (len(tokens) - counted)
            all_tokens += tokens
        return all_tokens, counts


def texts_for(spec: ModelSpec, own: Path | None = None) -> tuple[QualityText, ...]:
    """Return the texts that an artifact is measured on; the bound is about the first: the named
    text, or a file of the user's. The sample model knows no prose, so its own domain comes first.
    Raises InputError for a file that is not UTF-8 text, UsageError for an empty one.
    """
    first = default_text() if own is None else read_text(own)
    return (sample_text(), first) if is_sample(spec) else (first,)


def is_sample(spec: ModelSpec) -> bool:
    """Whether the model is the embedded sample, whose domain and task are known."""
    return spec.tokenizer_dir is not None and spec.tokenizer_dir.resolve() == MODEL_DIR.resolve()


def default_text() -> QualityText:
    content = (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")
    return QualityText(DEFAULT_TEXT, _sha256(content), content)


def read_text(path: Path) -> QualityText:
    """A user's text, named by its file name."""
    content = read_regular_text(path, _MAX_TEXT_BYTES)
    if not content.strip():
        raise UsageError(f"the quality text {path} is empty")
    return QualityText(printable(path.name), _sha256(content), content)


def sample_text() -> QualityText:
    """Conversations of the sample model's world, the same on every machine."""
    talks = read_conversations("quality")
    written = json.dumps([[turn.to_dict() for turn in talk] for talk in talks], ensure_ascii=False)
    return QualityText(SAMPLE_TEXT, _sha256(written), conversations=talks)


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
