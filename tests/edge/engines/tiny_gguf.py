"""Small GGUF models for the runtime tests, made from nothing but `gguf` and numpy.

The vocabulary is byte-level: 256 bytes, a few merges, and special tokens, so that any text can be
tokenized and a multi-byte character always spans several tokens.

`random_llama`    random weights: its output depends on the whole history
`scripted_llama`  layers that add nothing, and an output matrix that maps each token to a chosen
                  successor: says exactly what a test wants
`random_mamba`    recurrent: its memory cannot be cut back
`random_gemma3`   sliding window: its memory forgets
`random_bert`     an encoder: it makes vectors
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

SPECIALS = ("<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
MERGES = ("h e", "l l", "he ll")
BOS, IM_START, IM_END, PAD = (256 + len(MERGES) + i for i in range(4))
N_VOCAB = 256 + len(MERGES) + len(SPECIALS)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

F32 = NDArray[np.float32]


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte (upstream: `gguf.vocab`, `bytes_to_unicode`)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in kept}
    for i, b in enumerate(b for b in range(256) if b not in names):
        names[b] = chr(256 + i)
    return [names[b] for b in range(256)]


def start(
    path: Path,
    arch: str,
    *,
    n_ctx: int,
    add_bos: bool,
    template: str | None,
    special_kind: int = 3,
    pad: str | None = None,
) -> gguf.GGUFWriter:
    """A writer with the vocabulary and the general keys in it. `special_kind`: 3 is control, 4 user
    defined, as some converters write tokens of turns. `pad` is a whole text for the token PAD.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny-{arch}")
    writer.add_context_length(n_ctx)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(0)
    merged = [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    kinds = [special_kind] * (len(SPECIALS) - 1) + [special_kind if pad is None else 4]
    writer.add_token_list([*byte_characters(), *merged, *SPECIALS[:-1], pad or SPECIALS[-1]])
    writer.add_token_types([1] * (256 + len(MERGES)) + kinds)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(IM_END)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    return writer


def finish(writer: gguf.GGUFWriter, tensors: Mapping[str, F32]) -> None:
    for name, array in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_llama(
    path: Path,
    *,
    n_ctx: int = 1024,
    n_embd: int = 128,
    n_layer: int = 2,
    n_ff: int = 128,
    seed: int = 0,
    add_bos: bool = True,
    template: str | None = TEMPLATE,
    special_kind: int = 3,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    rng = np.random.default_rng(seed)
    writer = start(
        path, "llama", n_ctx=n_ctx, add_bos=add_bos, template=template, special_kind=special_kind
    )
    attention_keys(writer, n_embd, n_layer, n_ff)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    finish(writer, llama_tensors(rng, n_embd, n_layer, n_ff))
    return path


def scripted_llama(
    path: Path,
    successors: Mapping[int, int],
    *,
    n_ctx: int = 1024,
    add_bos: bool = True,
    template: str | None = TEMPLATE,
    pad: str | None = None,
) -> Path:
    """After token `t` the likeliest is `successors[t]`; after all others, PAD."""
    tensors = scripted_tensors(successors)
    writer = start(path, "llama", n_ctx=n_ctx, add_bos=add_bos, template=template, pad=pad)
    attention_keys(writer, tensors["token_embd.weight"].shape[1], 2, 64)
    finish(writer, tensors)
    return path


def scripted_tensors(successors: Mapping[int, int]) -> dict[str, F32]:
    """Weights of `scripted_llama`."""
    n_embd, n_layer, n_ff = 288, 2, 64
    rng = np.random.default_rng(1)
    tensors = llama_tensors(rng, n_embd, n_layer, n_ff)
    # Orthogonal embeddings (there are fewer tokens than dimensions): no token resembles another.
    embedding = np.linalg.qr(rng.standard_normal((n_embd, N_VOCAB)))[0].T.astype(np.float32)
    tensors["token_embd.weight"] = embedding
    for i in range(n_layer):
        tensors[f"blk.{i}.attn_output.weight"] *= 0
        tensors[f"blk.{i}.ffn_down.weight"] *= 0
    output = np.zeros_like(embedding)
    for token in range(N_VOCAB):
        output[successors.get(token, PAD)] += embedding[token]
    tensors["output.weight"] = output
    return tensors


def script(text: str, *, after: int, then: int) -> dict[int, int]:
    """Successors that say `text`, whose bytes must all differ, after token `after`, then `then`."""
    tokens = [after, *text.encode(), then]
    assert len(set(tokens[:-1])) == len(tokens) - 1, "a successor depends on the last token only"
    return dict(itertools.pairwise(tokens))


def random_bert(
    path: Path, *, n_ctx: int = 256, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN
) -> Path:
    """An encoder, which makes vectors and generates nothing."""
    rng, n_embd, n_ff = np.random.default_rng(0), 64, 96
    writer = start(path, "bert", n_ctx=n_ctx, add_bos=True, template=None)
    attention_keys(writer, n_embd, 2, n_ff)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_token_type_count(2)
    if pooling is not None:
        writer.add_pooling_type(pooling)

    def normal(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])

    tensors = {
        "token_embd.weight": normal(N_VOCAB, n_embd) * 5,
        "position_embd.weight": normal(n_ctx, n_embd),
        "token_types.weight": normal(2, n_embd),
    }
    norms = ["token_embd_norm"]
    for i in range(2):
        for name, rows, columns in (
            *((f"attn_{part}", n_embd if part in "q output" else n_embd // 2, n_embd)
              for part in ("q", "k", "v", "output")),
            ("ffn_up", n_ff, n_embd),
            ("ffn_down", n_embd, n_ff),
        ):  # fmt: skip
            tensors[f"blk.{i}.{name}.weight"] = normal(rows, columns)
            tensors[f"blk.{i}.{name}.bias"] = normal(rows)
        norms += [f"blk.{i}.attn_output_norm", f"blk.{i}.layer_output_norm"]
    for name in norms:
        tensors[f"{name}.weight"] = np.ones(n_embd, np.float32)
        tensors[f"{name}.bias"] = np.zeros(n_embd, np.float32)
    finish(writer, tensors)
    return path


def attention_keys(writer: gguf.GGUFWriter, n_embd: int, n_layer: int, n_ff: int) -> None:
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)


def llama_tensors(rng: np.random.Generator, n_embd: int, n_layer: int, n_ff: int) -> dict[str, F32]:
    def normal(rows: int, columns: int) -> F32:
        return rng.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(columns) * 1.5

    ones = np.ones(n_embd, np.float32)
    tensors = {
        "token_embd.weight": rng.standard_normal((N_VOCAB, n_embd)).astype(np.float32),
        "output_norm.weight": ones,
        "output.weight": normal(N_VOCAB, n_embd),
    }
    for i in range(n_layer):
        block = f"blk.{i}."
        tensors[block + "attn_norm.weight"] = ones
        tensors[block + "attn_q.weight"] = normal(n_embd, n_embd)
        tensors[block + "attn_k.weight"] = normal(n_embd // 2, n_embd)
        tensors[block + "attn_v.weight"] = normal(n_embd // 2, n_embd)
        tensors[block + "attn_output.weight"] = normal(n_embd, n_embd)
        tensors[block + "ffn_norm.weight"] = ones
        tensors[block + "ffn_gate.weight"] = normal(n_ff, n_embd)
        tensors[block + "ffn_up.weight"] = normal(n_ff, n_embd)
        tensors[block + "ffn_down.weight"] = normal(n_embd, n_ff)
    return tensors


def random_gemma3(path: Path, *, n_ctx: int = 1024, window: int = 32) -> Path:
    """Six layers, five of which see `window` tokens only (upstream: src/models/gemma3.cpp)."""
    n_embd, n_layer, n_ff = 64, 6, 128
    rng = np.random.default_rng(2)
    tensors = llama_tensors(rng, n_embd, n_layer, n_ff)
    for i in range(n_layer):
        for name, size in (
            ("attn_q_norm", n_embd // 4),
            ("attn_k_norm", n_embd // 4),
            ("post_attention_norm", n_embd),
            ("post_ffw_norm", n_embd),
        ):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(size, np.float32)
    writer = start(path, "gemma3", n_ctx=n_ctx, add_bos=True, template=TEMPLATE)
    attention_keys(writer, n_embd, n_layer, n_ff)
    writer.add_key_length(n_embd // 4)
    writer.add_value_length(n_embd // 4)
    writer.add_sliding_window(window)
    finish(writer, tensors)
    return path


def random_mamba(path: Path, *, n_ctx: int = 1024) -> Path:
    """Two state-space layers (upstream: src/models/mamba.cpp)."""
    n_embd, n_layer, d_conv, d_state, dt_rank = 64, 2, 4, 16, 4
    d_inner = 2 * n_embd
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1])

    tensors = {
        "token_embd.weight": normal(N_VOCAB, n_embd) * 8,
        "output_norm.weight": np.ones(n_embd, np.float32),
        "output.weight": normal(N_VOCAB, n_embd),
    }
    for i in range(n_layer):
        block = f"blk.{i}."
        tensors[block + "attn_norm.weight"] = np.ones(n_embd, np.float32)
        tensors[block + "ssm_in.weight"] = normal(2 * d_inner, n_embd)
        tensors[block + "ssm_conv1d.weight"] = normal(d_inner, d_conv)
        tensors[block + "ssm_conv1d.bias"] = np.zeros(d_inner, np.float32)
        tensors[block + "ssm_x.weight"] = normal(dt_rank + 2 * d_state, d_inner)
        tensors[block + "ssm_dt.weight"] = normal(d_inner, dt_rank)
        tensors[block + "ssm_dt.bias"] = np.zeros(d_inner, np.float32)
        tensors[block + "ssm_a"] = -np.tile(np.arange(1.0, d_state + 1), (d_inner, 1))
        tensors[block + "ssm_d"] = np.ones(d_inner, np.float32)
        tensors[block + "ssm_out.weight"] = normal(n_embd, d_inner)
    writer = start(path, "mamba", n_ctx=n_ctx, add_bos=True, template=TEMPLATE)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    finish(writer, tensors)
    return path
