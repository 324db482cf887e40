"""The chat format: special tokens, the template, and the same rendering in plain Python."""

from __future__ import annotations

from lab.sample.generator import DEFAULT_SYSTEM, Message

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- endif -%}"
)


def render_message(message: Message) -> str:
    """One message with its markers."""
    return f"{IM_START}{message['role']}\n{message['content']}{IM_END}\n"


def render_prompt(messages: list[Message]) -> str:
    """What the template yields with `add_generation_prompt`; a test keeps the two equal."""
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    return "".join(render_message(message) for message in messages) + f"{IM_START}assistant\n"
