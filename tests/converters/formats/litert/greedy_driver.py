"""Runs in the pinned LiteRT environment, which has torch and transformers: what the source itself
would say. Greedy continuation of a prompt in float32, and the logits behind every token of both.

    python greedy_driver.py CHECKPOINT PROMPT.json N_TOKENS OUT.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def main() -> None:
    checkpoint, prompt, n_tokens, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    config = transformers.AutoConfig.from_pretrained(checkpoint, dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = json.loads(Path(prompt).read_text())
    # Padding behind the tokenizer's last id is never drawn.
    size = len(transformers.AutoTokenizer.from_pretrained(checkpoint))
    with torch.no_grad():
        for _ in range(n_tokens):
            last = model(torch.tensor([tokens])).logits[0, -1, :size]
            tokens.append(int(last.argmax()))
        logits = model(torch.tensor([tokens])).logits[0, :, :size].float().numpy()
    np.savez(out, tokens=np.array(tokens), logits=logits)


if __name__ == "__main__":
    main()
