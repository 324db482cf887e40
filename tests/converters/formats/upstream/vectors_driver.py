"""Vectors out of transformers, for the tests of embedding models.

    python vectors_driver.py < job.json

Started with the oracle environment's Python, never imported. A job is
`{"model", "pooling", "ids"}`;
the answer is a list of vectors of length one.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel

POOL = {
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
    "mean": lambda states: states.mean(0),
}


def main() -> None:
    job = json.load(sys.stdin)
    folder = Path(job["model"])
    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    dense = [load_file(path)["linear.weight"] for path in sorted(folder.glob("*_Dense/*.safe*"))]
    vectors = []
    with torch.inference_mode():
        for ids in job["ids"]:
            vector = POOL[job["pooling"]](model(torch.tensor([ids])).last_hidden_state[0])
            for weight in dense:
                vector = weight @ vector
            vectors.append((vector / vector.norm()).tolist())
    print(json.dumps(vectors))


if __name__ == "__main__":
    main()
