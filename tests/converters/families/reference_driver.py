"""Random models in transformers: saves each as a checkpoint and stores its logits.

    python reference_driver.py < jobs.json

Started with the oracle environment's Python (torch, transformers), never imported. A job is
`{"config", "directory", "tokens"}`; the checkpoint goes to `directory`, and the float32 logits of
all positions of the one sequence to `directory/logits.npy`, of shape (tokens, vocabulary).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.activations import ACT2FN


def main() -> int:
    """Run all jobs from standard input."""
    torch.set_num_threads(1)
    compute_as_engine()
    for job in json.load(sys.stdin):
        torch.manual_seed(0)
        config = AutoConfig.for_model(**job["config"])
        plain = type(config) in AutoModelForCausalLM._model_mapping
        kind = AutoModelForCausalLM if plain else AutoModelForImageTextToText
        model = kind.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            randomize(model)
            logits = model(torch.tensor([job["tokens"]])).logits[0]
        directory = Path(job["directory"])
        model.save_pretrained(directory, safe_serialization=True)
        np.save(directory / "logits.npy", logits.float().numpy())
    return 0


class TableGelu(torch.nn.Module):
    """The engine looks GELU up in a table of float16 (ggml/src/ggml-cpu/vec.h)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() >= 10, x.clamp(min=0), y)


def compute_as_engine() -> None:
    """Two roundings of the engine's own, which random weights at small sizes make large.

    Beside the GELU it is Gemma 3n's standard deviation, divided by n - 1 (src/models/gemma3n.cpp,
    `gaussian_topk`), not by n: 0.006 % of it over the 8,192 values of a published model.
    """
    ACT2FN["gelu_pytorch_tanh"] = TableGelu
    std = torch.std
    torch.std = lambda *inputs, **options: std(*inputs, **{**options, "unbiased": True})


def randomize(model: torch.nn.Module) -> None:
    """Values for which every tensor matters: matrices that keep a vector's length, vectors (norms,
    biases) moved away from their neutral start.
    """
    buffers = (b for n, b in model.named_buffers() if n.endswith("layer_scalar") or "bias" in n)
    for tensor in [*model.parameters(), *buffers]:
        if tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.2)
        else:
            tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)


if __name__ == "__main__":
    sys.exit(main())
