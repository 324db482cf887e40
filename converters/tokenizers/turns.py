"""Where a turn ends: the chat template's own end-of-turn token; whether the engine stops there."""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.tokenizers.engine_vocab import EngineVocab
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.edge.errors import InputError, IntegrityError
from boardfit.edge.types import Message, Thinking
from boardfit.edge.units import printable

# A word no template contains; what follows it is what ends the assistant's turn.
_ANSWER = "Answer7351"
_CONVERSATION = (Message("user", "Question"), Message("assistant", _ANSWER))


def default_template(files: TokenizerFiles) -> str | None:
    """The checkpoint's chat template; of several, the one named default."""
    template = files.chat_template()
    if isinstance(template, list):
        return next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def check_template(files: TokenizerFiles, engine: EngineVocab) -> str | None:
    """The checkpoint's template, None when it has none. Raises IntegrityError when the one in the
    engine's file is another.
    """
    template = default_template(files)
    written = engine.header.text("tokenizer.chat_template")
    if template is None and written is None:
        return None
    if template != written:
        raise IntegrityError(
            "the chat template in the file is not the checkpoint's: got "
            f"{printable(str(written), 80)!r}, expected {printable(str(template), 80)!r}"
        )
    return template


def check_words(
    template: str, thinking: Thinking = "auto", variables: Mapping[str, Any] | None = None
) -> list[str]:
    """Put marker words through a template as the board renders it; returns what is worth knowing.

    Raises UnsafeInputError for a template that the sandbox stops, InputError for one that loses
    words, UsageError for variables that it does not read.
    """
    from boardfit.edge.template.conversation import ChatTemplate
    from boardfit.edge.template.lint import check

    written = ChatTemplate(template, bos="<s>", eos="</s>", thinking=thinking, variables=variables)
    written.check_settings()
    written.check_words()
    parts = [f"its {role} content is a list of parts" for role in sorted(written.form.parts)]
    return [*parts, *check(template)]


def turn_end(template: str, files: TokenizerFiles) -> str:
    """The text that the template puts after the assistant's answer. Raises InputError when the
    template does not render a question and an answer.
    """
    from boardfit.edge.template.conversation import ChatTemplate

    texts = files.special_texts()
    written = ChatTemplate(template, bos=texts.get("bos", ""), eos=texts.get("eos", ""))
    rendered = "".join(written.write(_CONVERSATION, lambda text, is_own: (), generate=False))
    _, found, tail = rendered.rpartition(_ANSWER)
    if not found:
        raise InputError(
            "the chat template leaves out the assistant's answer when it is the last message",
            next_step="correct chat_template in tokenizer_config.json",
        )
    return tail


def check_stops(engine: EngineVocab, ends: Sequence[int], tail: str | None) -> str | None:
    """Every id in `ends`, and the first special token in the template's `tail`, must end a
    generation in the engine. Returns that token's text. Raises IntegrityError that names the token
    and the way out.
    """
    for token_id in ends:
        if token_id >= engine.n_tokens or not engine.is_eog(token_id):
            raise IntegrityError(
                f"eos_token_id {token_id} ({_name(engine, token_id)}) does not end a generation "
                "in the engine; the model would talk on",
                next_step="convert again: the converter writes such tokens as eos, eot or eom",
            )
    ids = engine.encode(tail) if tail else []
    first = next((i for i in ids if engine.is_special(i)), None)
    if first is None:
        return None
    if not engine.is_eog(first):
        raise IntegrityError(
            f"the chat template ends a turn with token {first} ({_name(engine, first)}), which "
            "does not end a generation in the engine; the model would talk on",
            next_step=f"add {first} to eos_token_id in generation_config.json",
        )
    return engine.token_text(first)


def _name(engine: EngineVocab, token_id: int) -> str:
    if token_id >= engine.n_tokens:
        return "past the vocabulary"
    return repr(printable(engine.token_text(token_id)))
