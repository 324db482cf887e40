"""Turn a training run into the shipped folder: F16 safetensors, tokenizer, template, card.

    PYTHONPATH=scripts python -m lab.sample.export --run /tmp/sample-train [--to DIR]

The folder is written beside its place and then renamed, so no reader loads half of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from boardfit.converters.sample import MODEL_DIR
from lab.sample import results
from lab.sample.card import card_text
from lab.sample.chat_format import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, SPECIAL_TOKENS
from lab.sample.shape import Config

F16_MAX = 65504.0


def tokenizer_config() -> dict[str, Any]:
    """`tokenizer_config.json`: special tokens, template, no beginning-of-text token."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1024,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": None,
        "unk_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [IM_START],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {
            str(n): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for n, token in enumerate(SPECIAL_TOKENS)
        },
    }


def generation_config() -> dict[str, Any]:
    """`generation_config.json`: greedy, because the task has one right answer."""
    return {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0, "max_new_tokens": 80}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(run: Path, target: Path = MODEL_DIR) -> None:
    """Write the model of training run `run` to `target`, with an empty results table."""
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in saved["model"].items():
        if weight.abs().max() > F16_MAX or not weight.isfinite().all():
            raise ValueError(f"{name} does not fit F16 (largest {weight.abs().max():g})")
        weights[name] = weight.half().contiguous()

    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
    (scratch / "model.safetensors").chmod(0o644)
    shutil.copyfile(run / "tokenizer.json", scratch / "tokenizer.json")
    _write_json(scratch / "config.json", Config().to_hf())
    _write_json(scratch / "generation_config.json", generation_config())
    _write_json(scratch / "tokenizer_config.json", tokenizer_config())
    (scratch / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    # New weights make old scores untrue: the table starts empty again.
    found: dict[str, Any] = {
        "schema": 1,
        "recipes": {},
        "training": {
            "n_steps": saved["step"],
            "train_s": round(saved["train_s"]),
            "n_parameters": sum(weight.numel() for weight in weights.values()),
        },
    }
    results.save(found, scratch)
    (scratch / "README.md").write_text(card_text(found), encoding="utf-8")

    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="export a training run as the sample model")
    parser.add_argument("--run", type=Path, required=True, help="folder with checkpoint.pt")
    parser.add_argument("--to", type=Path, default=MODEL_DIR)
    args = parser.parse_args()
    export(args.run, args.to)


if __name__ == "__main__":
    main()
