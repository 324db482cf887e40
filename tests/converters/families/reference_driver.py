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


def main() -> int:
    """Run all jobs from standard input."""
    torch.set_num_threads(1)
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


def randomize(model: torch.nn.Module) -> None:
    """Values for which every tensor matters: matrices that keep a vector's length, vectors (norms,
    biases) moved away from their neutral start.
    """
    for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if "bias" in n)]:
        if tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.2)
        else:
            tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)


if __name__ == "__main__":
    sys.exit(main())
