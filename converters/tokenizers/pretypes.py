"""llama.cpp's BPE pre-tokenizers as data: what they split on, and the names upstream gives them.

Each entry lists which steps a tokenizer.json runs before BPE when a `tokenizer.ggml.pre` name
reproduces it, and what else the name switches on in the engine (llama.cpp src/llama-vocab.cpp,
`llm_tokenizer_bpe` for the regexes, `llama_vocab::impl::load` for the flags). Names that share all
of that behave alike; `markers` are tokens of the original model, by which upstream's own choice
among them is reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass

# Contractions in the two spellings that occur, folded into one by `pretokenizer.canonical_regex`.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# GPT-2's pattern: what ByteLevel(use_regex=true) splits on.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}"
UFAKZEKA = rf"{_WORD}|\p{{N}}|{_TAIL}"
MINICPM5 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+|{_TAIL}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_CODER = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# The later spelling of GPT-4's pattern; it splits as LLAMA3 does.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"
)
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_CASED_TAIL}"
)
# Ranges as escapes: some of these characters change under Unicode normalization.
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-"
    "\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-"
    "\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-"
    "\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6"
    "-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
    "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"
    "\U0001e943"
    "]+"
)
_DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~" "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002" "]+"
DEEPSEEK3_MAIN = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# One step: ("split", regex), every match a piece of its own, or ("digits", individual).
Step = tuple[str, str]
DIGIT: Step = ("split", r"\p{N}")
DIGITS: Step = ("split", r"\p{N}+")


@dataclass(frozen=True)
class PreType:
    """One `tokenizer.ggml.pre` name. `steps` in order; `ignore_merges`: a piece that is a token is
    taken whole; `adds_bos`: the engine's default for texts when the file does not state it.
    """

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    markers: tuple[str, ...] = ()


def _split(*regexes: str) -> tuple[Step, ...]:
    return tuple(("split", regex) for regex in regexes)


# Order is preference: among entries that behave alike, the first whose markers are all in the
# vocabulary is taken; those without markers match always, so they stand last of their kind.
PRE_TYPES: tuple[PreType, ...] = (
    PreType(
        "lfm2",
        _split(LLAMA3),
        ignore_merges=True,
        adds_bos=True,
        markers=("<|startoftext|>", "<|im_end|>"),
    ),
    PreType("falcon3", _split(LLAMA3), True, True, markers=(">>TITLE<<", "<|endoftext|>")),
    PreType("pixtral", _split(LLAMA3), True, True, markers=("[IMG]", "[INST]")),
    PreType("llama-bpe", _split(LLAMA3), ignore_merges=True, adds_bos=True),
    PreType("falcon-h1", _split(LLAMA3), ignore_merges=True, adds_bos=True),
    PreType("smaug-bpe", _split(LLAMA3), markers=("<|begin_of_text|>", "<|eot_id|>")),
    PreType("dbrx", _split(LLAMA3)),
    PreType("dbrx", _split(CL100K)),
    PreType("llama-bpe", _split(CL100K), ignore_merges=True, adds_bos=True),
    PreType("deepseek-r1-qwen", _split(QWEN2), markers=("<｜begin▁of▁sentence｜>",)),
    PreType("stablelm2", _split(QWEN2), markers=("<|reg_extra|>",)),
    PreType("qwen2", _split(QWEN2)),
    PreType("qwen35", _split(QWEN35)),
    PreType("ufakzeka", _split(UFAKZEKA)),
    PreType("minicpm5", (("split", r"\p{N}{1,3}"), ("split", MINICPM5)), ignore_merges=True),
    PreType("seed-coder", _split(SEED_CODER)),
    PreType("bailingmoe", _split(BAILING)),
    PreType("gpt-4o", _split(GPT4O)),
    PreType("tekken", _split(TEKKEN), ignore_merges=True, adds_bos=True),
    PreType("refact", (DIGIT, ("split", GPT2)), markers=("<fim_prefix>", "<reponame>")),
    PreType("smollm", (DIGIT, ("split", GPT2)), markers=("<repo_name>", "<reponame>")),
    PreType("starcoder", (DIGIT, ("split", GPT2)), markers=("<fim_prefix>", "<repo_name>")),
    PreType("command-r", (DIGIT, ("split", GPT2)), markers=("<|START_OF_TURN_TOKEN|>",)),
    PreType("smollm", (DIGIT, ("split", GPT2))),
    PreType("olmo", _split(GPT2), markers=("|||IP_ADDRESS|||",)),
    PreType("phi-2", _split(GPT2), markers=("\t\t", "  ", "<|endoftext|>")),
    PreType("gpt-2", _split(GPT2)),
    PreType("exaone4", _split(GPT2)),
    PreType(
        "falcon",
        (("punctuation", "contiguous"), ("split", GPT2), DIGITS, ("split", "[0-9][0-9][0-9]")),
    ),
    PreType(
        "deepseek-llm",
        (
            *_split(r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _CJK),
            DIGIT,
        ),
    ),
    PreType("deepseek-coder", (*_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK), DIGIT)),
    PreType(
        "hunyuan-dense",
        _split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3_MAIN),
        markers=("<｜hy_Assistant｜>",),
    ),
    PreType("deepseek-v3", _split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3_MAIN)),
)
