"""Real tokenizers' definitions, without their vocabularies: what `rebuild` writes around the tokens
of upstream's vocab-only GGUF files.

Each flavour names the vocabulary it takes, the pre-tokenizer of the original tokenizer.json, its
special tokens and a chat template of the original's shape. `rename` gives reserved tokens of the
vocabulary the names that the original family uses, so that families whose own vocabulary is not in
upstream's tree are recognisable by their tokens too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boardfit.converters.tokenizers.pretokenizer import PATTERNS, PRE_TYPES, Step, canonical_regex

Json = dict[str, Any]


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": regex},
        "behavior": behavior,
        "invert": invert,
    }


def _byte_level(use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _from_table(name: str) -> Json:
    """The pre-tokenizer whose only description is the engine's own list of patterns."""
    pre = next(pre for pre in PRE_TYPES if pre.name == name)
    return _sequence(*(_split(regex) for _, regex in pre.steps), _byte_level(False))


_DIGITS = {"type": "Digits", "individual_digits": True}
_NFC = {"type": "NFC"}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}{% endif %}{% endfor %}"
)
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content']"
    " + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] =="
    " 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content']"
    " | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content']"
    " + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content']"
    " + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
GRANITE_TEMPLATE = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>'"
    " + message['content'] + '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
# gpt-oss's, as far as it is text.
HARMONY = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '<|message|>'"
    " + message['content'] }}{% if loop.last and message['role'] == 'assistant' %}"
    "{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class Flavour:
    """`vocab` names `models/ggml-vocab-<vocab>.gguf`; `upstream_pre` is the name that upstream's
    converter gives the rebuilt tokenizer, None where its hash table does not know it (then an
    oracle has to patch `get_vocab_base_pre` to return `pre`).
    """

    vocab: str
    pre: str
    pre_tokenizer: Json | None = None
    normalizer: Json | None = None
    ignore_merges: bool = False
    bos: str | None = None
    eos: str = "<|endoftext|>"
    pad: str | None = None
    unk: str | None = None
    adds_bos: bool = False
    template: str | None = None
    upstream_pre: str | None = None
    tokenizer_class: str = "PreTrainedTokenizerFast"
    rename: Mapping[str, str] = field(default_factory=dict)
    # Special tokens appended to the vocabulary.
    extra: tuple[str, ...] = ()
    # SentencePiece flavours only: which files are written, whether a space goes before a text, and
    # pieces that take the place of <unk>, <s> and </s> at the start of the vocabulary.
    files: tuple[str, ...] = ("tokenizer.json",)
    dummy_prefix: bool = True
    rstrip: bool = False
    pieces: tuple[str, ...] = ()
    # Further entries of tokenizer_config.json.
    settings: Mapping[str, Any] = field(default_factory=dict)


_LLAMA3_PRE = _sequence(_split(PATTERNS["llama3"]), _byte_level(False))
_QWEN2_PRE = _sequence(_split(PATTERNS["qwen2"]), _byte_level(False))
_STARCODER_PRE = _sequence(_DIGITS, _byte_level(True))

FLAVOURS: dict[str, Flavour] = {
    # Llama 3.x, and SmolLM3, whose tokenizer is Llama 3's with its own control tokens.
    "llama-bpe": Flavour(
        "llama-bpe",
        "llama-bpe",
        _LLAMA3_PRE,
        ignore_merges=True,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        adds_bos=True,
        template=LLAMA3_TEMPLATE,
        upstream_pre="llama-bpe",
    ),
    "smollm3": Flavour(
        "llama-bpe",
        "llama-bpe",
        _LLAMA3_PRE,
        ignore_merges=True,
        eos="<|im_end|>",
        template=CHATML,
        rename={
            "<|reserved_special_token_2|>": "<|im_start|>",
            "<|reserved_special_token_3|>": "<|im_end|>",
        },
    ),
    "lfm2": Flavour(
        "llama-bpe",
        "lfm2",
        _LLAMA3_PRE,
        ignore_merges=True,
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<|pad|>",
        adds_bos=True,
        template="{{ bos_token }}" + CHATML,
        rename={
            "<|begin_of_text|>": "<|startoftext|>",
            "<|end_of_text|>": "<|endoftext|>",
            "<|reserved_special_token_0|>": "<|pad|>",
            "<|start_header_id|>": "<|im_start|>",
            "<|eot_id|>": "<|im_end|>",
        },
    ),
    # Falcon-H1; the vocabulary stands in for its own.
    "falcon-h1": Flavour(
        "llama-bpe",
        "falcon-h1",
        _LLAMA3_PRE,
        ignore_merges=True,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|pad|>",
        adds_bos=True,
        template="{{ bos_token }}" + CHATML,
        rename={
            "<|reserved_special_token_0|>": "<|pad|>",
            "<|start_header_id|>": "<|im_start|>",
            "<|eot_id|>": "<|im_end|>",
        },
    ),
    # Qwen2, 2.5 and 3.
    "qwen2": Flavour(
        "qwen2",
        "qwen2",
        _QWEN2_PRE,
        normalizer=_NFC,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=CHATML,
        upstream_pre="qwen2",
    ),
    # Qwen3.5's pattern; upstream's file has it over Qwen2's vocabulary.
    "qwen35": Flavour(
        "qwen35",
        "qwen35",
        _sequence(_split(PATTERNS["qwen35"]), _byte_level(False)),
        normalizer=_NFC,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=CHATML,
    ),
    "gpt-2": Flavour(
        "gpt-2",
        "gpt-2",
        _byte_level(True),
        bos="<|endoftext|>",
        unk="<|endoftext|>",
        upstream_pre="gpt-2",
    ),
    # OLMo 2: GPT-4's pattern over a vocabulary of its own.
    # MiniCPM5; the vocabulary stands in for its own.
    "minicpm5": Flavour(
        "llama-bpe",
        "minicpm5",
        _sequence(_split(r"\p{N}{1,3}"), _split(PATTERNS["minicpm5"]), _byte_level(False)),
        ignore_merges=True,
        bos="<s>",
        eos="<|im_end|>",
        unk="<unk>",
        template="{{ bos_token }}" + CHATML,
        rename={
            "<|begin_of_text|>": "<s>",
            "<|end_of_text|>": "</s>",
            "<|reserved_special_token_0|>": "<unk>",
            "<|start_header_id|>": "<|im_start|>",
            "<|eot_id|>": "<|im_end|>",
        },
    ),
    # Hunyuan (dense); the vocabulary stands in for its own.
    "hunyuan": Flavour(
        "llama-bpe",
        "hunyuan-dense",
        _from_table("hunyuan-dense"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        template=ZEPHYR_TEMPLATE,
        rename={"<|reserved_special_token_0|>": "<｜hy_Assistant｜>"},
    ),
    # gpt-oss; the vocabulary stands in for its own.
    "gpt-oss": Flavour(
        "llama-bpe",
        "gpt-4o",
        _sequence(_split(PATTERNS["gpt4o"]), _byte_level(False)),
        bos="<|startoftext|>",
        eos="<|return|>",
        pad="<|endoftext|>",
        template=HARMONY,
        rename={
            "<|begin_of_text|>": "<|startoftext|>",
            "<|end_of_text|>": "<|endoftext|>",
            "<|reserved_special_token_0|>": "<|call|>",
            "<|start_header_id|>": "<|start|>",
            "<|end_header_id|>": "<|message|>",
            "<|eot_id|>": "<|end|>",
            "<|reserved_special_token_1|>": "<|return|>",
        },
    ),
    "exaone4": Flavour(
        "gpt-2", "exaone4", _byte_level(True), bos="<|endoftext|>", template=ZEPHYR_TEMPLATE
    ),
    "ernie4_5": Flavour(
        "llama-spm",
        "default",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        template=LLAMA2_TEMPLATE,
        files=("tokenizer.model",),
        dummy_prefix=False,
        settings={"add_prefix_space": False},
    ),
    "olmo2": Flavour(
        "gpt-2",
        "dbrx",
        _sequence(_split(PATTERNS["llama3"], "Removed", True), _byte_level(False)),
        bos="<|endoftext|>",
        unk="<|endoftext|>",
        template=ZEPHYR_TEMPLATE,
    ),
    "starcoder": Flavour(
        "starcoder",
        "starcoder",
        _STARCODER_PRE,
        bos="<|endoftext|>",
        unk="<|endoftext|>",
        upstream_pre="starcoder",
    ),
    "refact": Flavour(
        "refact",
        "refact",
        _STARCODER_PRE,
        bos="<|endoftext|>",
        unk="<|endoftext|>",
        upstream_pre="refact",
    ),
    # Granite 3.x: StarCoder's vocabulary, roles in added tokens.
    "granite": Flavour(
        "refact",
        "refact",
        _STARCODER_PRE,
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        unk="<|end_of_text|>",
        template=GRANITE_TEMPLATE,
        rename={"<|endoftext|>": "<|end_of_text|>"},
        extra=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    # SmolLM and SmolLM2.
    "smollm": Flavour(
        "starcoder",
        "smollm",
        _STARCODER_PRE,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        template=CHATML,
        rename={
            "<fim_prefix>": "<|im_start|>",
            "<fim_middle>": "<|im_end|>",
            "<fim_suffix>": "<reponame>",
        },
    ),
    "command-r": Flavour(
        "command-r",
        "command-r",
        _STARCODER_PRE,
        normalizer=_NFC,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        adds_bos=True,
        upstream_pre="command-r",
    ),
    "deepseek-llm": Flavour(
        "deepseek-llm",
        "deepseek-llm",
        _from_table("deepseek-llm"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        adds_bos=True,
        upstream_pre="deepseek-llm",
    ),
    "deepseek-coder": Flavour(
        "deepseek-coder",
        "deepseek-coder",
        _from_table("deepseek-coder"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        adds_bos=True,
        upstream_pre="deepseek-coder",
    ),
    "falcon": Flavour(
        "falcon",
        "falcon",
        _sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            _byte_level(True),
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ),
        bos="<|endoftext|>",
        upstream_pre="falcon",
    ),
    # Phi-4-mini: GPT-4o's pattern; the vocabulary stands in for its own.
    "phi4-mini": Flavour(
        "gpt-2",
        "gpt-4o",
        _sequence(_split(PATTERNS["gpt4o"], "Removed", True), _byte_level(False)),
        bos="<|endoftext|>",
        unk="<|endoftext|>",
        pad="<|endoftext|>",
        template=PHI4_TEMPLATE,
        extra=("<|assistant|>", "<|end|>", "<|user|>", "<|system|>"),
        tokenizer_class="GPT2Tokenizer",
    ),
    # Mistral Nemo, Ministral: tekken's pattern; the vocabulary stands in for its own.
    "tekken": Flavour(
        "llama-bpe",
        "tekken",
        _sequence(_split(PATTERNS["tekken"]), _byte_level(False)),
        ignore_merges=True,
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        template=LLAMA2_TEMPLATE,
        rename={
            "<|begin_of_text|>": "<s>",
            "<|end_of_text|>": "</s>",
            "<|reserved_special_token_0|>": "[INST]",
            "<|reserved_special_token_1|>": "[/INST]",
        },
    ),
    # Llama 2, Mistral v0.1, TinyLlama.
    "llama-spm": Flavour(
        "llama-spm",
        "default",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        adds_bos=True,
        template=LLAMA2_TEMPLATE,
        files=("tokenizer.model", "tokenizer.json"),
    ),
    "tinyllama": Flavour(
        "llama-spm",
        "default",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        pad="</s>",
        adds_bos=True,
        template=ZEPHYR_TEMPLATE,
        files=("tokenizer.model", "tokenizer.json"),
    ),
    # The same as a fast tokenizer alone, as many fine-tunes are saved.
    "llama-hf": Flavour(
        "llama-spm",
        "default",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        adds_bos=True,
        template=LLAMA2_TEMPLATE,
        files=("tokenizer.json",),
    ),
    # Gemma 2 and 3: no dummy prefix, turns as user-defined pieces.
    "gemma": Flavour(
        "llama-spm",
        "default",
        bos="<bos>",
        eos="<eos>",
        unk="<unk>",
        pad="<pad>",
        adds_bos=True,
        template=GEMMA_TEMPLATE,
        files=("tokenizer.model", "tokenizer.json"),
        dummy_prefix=False,
        pieces=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    ),
    # Gemma 4, its own vocabulary and template (`gemma_fast.rebuild_gemma4`).
    "gemma-4": Flavour(
        "gemma-4", "", bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", template="its own"
    ),
    "phi-3": Flavour(
        "phi-3",
        "default",
        bos="<s>",
        eos="<|endoftext|>",
        unk="<unk>",
        pad="<|endoftext|>",
        adds_bos=True,
        template=PHI3_TEMPLATE,
        files=("tokenizer.model", "tokenizer.json"),
        rstrip=True,
    ),
}


def is_equivalent(one: str, other: str) -> bool:
    """Whether two `tokenizer.ggml.pre` names split text alike. They may still differ in whether a
    piece that is a token is taken whole, and in the default for adding BOS.
    """
    steps: dict[str, set[tuple[Step, ...]]] = {}
    for pre in PRE_TYPES:
        canonical = tuple((kind, canonical_regex(value)) for kind, value in pre.steps)
        steps.setdefault(pre.name, set()).add(canonical)
    return one == other or bool(steps.get(one, set()) & steps.get(other, set()))
