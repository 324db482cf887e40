"""Runs in the pinned LiteRT environment: logits of transformers and of a converted model's decode
graph for the same tokens, side by side.

    python reference_driver.py CHECKPOINT MODEL.tflite [OFFSET] → one line of JSON

OFFSET is where the graph begins in a .litertlm. The KV cache goes in and out as the graph says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from ai_edge_litert import interpreter

N_TOKENS = 10


def main() -> None:
    checkpoint, path = sys.argv[1], Path(sys.argv[2])
    start, stop = (int(x) for x in sys.argv[3:5]) if len(sys.argv) > 3 else (0, None)
    config = transformers.AutoConfig.from_pretrained(checkpoint, dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, min(300, config.get_text_config().vocab_size), N_TOKENS).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].float().numpy()
    got = decode(path.read_bytes()[start:stop], tokens)
    print(
        json.dumps(
            {
                # Constants do not move a distribution: compare what is left without them.
                "error": float(_centred(got - expected).std() / _centred(expected).std()),
                "same_top": float((got.argmax(-1) == expected.argmax(-1)).mean()),
                "finite": bool(np.isfinite(got).all()),
            }
        )
    )


def decode(data: bytes, tokens: list[int]) -> np.ndarray:
    """Logits after every token, [n, n_vocab]."""
    runner = interpreter.Interpreter(model_content=data, num_threads=1).get_signature_runner(
        "decode"
    )
    details = runner.get_input_details()
    state = {
        name: np.zeros(d["shape"], d["dtype"])
        for name, d in details.items()
        if name.startswith("kv_cache")
    }
    found = []
    for position, token in enumerate(tokens):
        mask = np.full(details["mask"]["shape"], -1e4, np.float32)
        mask[..., : position + 1] = 0
        outputs = runner(
            tokens=np.array([[token]], np.int32),
            input_pos=np.array([position], np.int32),
            mask=mask,
            **state,
        )
        state = {name: outputs[name] for name in state}
        found.append(outputs["logits"].ravel())
    return np.stack(found)


def _centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(-1, keepdims=True)


if __name__ == "__main__":
    main()
