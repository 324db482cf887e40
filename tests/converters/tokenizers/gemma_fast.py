"""Gemma's fast tokenizer, rebuilt from upstream's gemma-4 vocabulary, which keeps its merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.converters.tokenizers.rebuild import (
    ADDED_FLAGS,
    CONTROL,
    USER_DEFINED,
    Rebuilt,
    read_fields,
)


def rebuild_gemma_fast(vocab_gguf: Path, out_dir: Path) -> Rebuilt:
    """Write tokenizer.json and tokenizer_config.json as Gemma 3's fine-tunes come without
    tokenizer.model: BPE over characters, spaces as U+2581, byte fallback.
    """
    fields = read_fields(vocab_gguf)
    tokens, types = fields["tokens"], fields["token_type"]
    added = [
        {"id": i, "content": text, **ADDED_FLAGS}
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    # The separator is the first space after the first character: a part may be a space itself.
    cuts = [(line, line.index(" ", 1)) for line in fields["merges"]]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB")]
    definition: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": space,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, texts[0]],
            "pair": [bos, texts[0], bos, texts[1]],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [[line[:cut], line[cut + 1 :]] for line, cut in cuts],
        },
    }
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (out_dir / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (out_dir / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return Rebuilt(len(tokens), tokens.index("<bos>"), tokens.index("<eos>"), 0)
