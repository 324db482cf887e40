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

# What Gemma 4's tokenizer_config.json names beside the usual roles, as transformers 5 saves it.
_ROLES = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
    "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    "sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>",
    "eoc_token": "<channel|>", "think_token": "<|think|>", "escape_token": '<|"|>',
    "str_token": "<|tool_response>", "etr_token": "<tool_response|>",
    "stc_token": "<|tool_call>", "etc_token": "<tool_call|>", "std_token": "<|tool>",
    "etd_token": "<tool|>", "video_token": "<|video|>", "mask_token": "<mask>",
}  # fmt: skip


def rebuild_gemma4(vocab_gguf: Path, out_dir: Path) -> Rebuilt:
    """Write the files of Gemma 4's instruction models: the template with channels and tools in a
    file of its own, and no BOS around a text, which the template begins with.
    """
    result = rebuild_gemma_fast(vocab_gguf, out_dir)
    path = out_dir / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    processor = definition["post_processor"]
    single, pair = processor["single"][1:], [processor["pair"][1], processor["pair"][3]]
    definition["post_processor"] = {**processor, "single": single, "pair": pair}
    path.write_text(json.dumps(definition), encoding="utf-8")
    config = json.loads((out_dir / "tokenizer_config.json").read_text())
    # The list is what transformers 4 goes by; 5 takes the roles too.
    extra = [text for role, text in _ROLES.items() if role != "mask_token"]
    names = {**config, **_ROLES, "additional_special_tokens": extra}
    names["tokenizer_class"] = "GemmaTokenizer"
    (out_dir / "tokenizer_config.json").write_text(json.dumps(names))
    template = read_fields(vocab_gguf)["tokenizer.chat_template"]
    (out_dir / "chat_template.jinja").write_text(template, encoding="utf-8")
    return result


def rebuild_gemma_fast(vocab_gguf: Path, out_dir: Path) -> Rebuilt:
    """Write tokenizer.json and tokenizer_config.json as Gemma 3's fine-tunes come without
    tokenizer.model: BPE over characters, spaces as U+2581, byte fallback.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
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
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
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
