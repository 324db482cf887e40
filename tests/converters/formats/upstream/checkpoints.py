"""Small checkpoints of architectures that no family of ours converts, with real vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from boardfit.edge.files.gguf import read_header
from tests.converters.families.checkpoints import write_checkpoint
from tests.converters.tokenizers.rebuild import rebuild, vocab_path

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER = 64, 4, 2, 160, 2
# Every sixth layer sees the whole text.
N_LAYER_GEMMA = 6


def write_starcoder2(directory: Path, tree: Path, **changes: Any) -> Path:
    """A StarCoder2 checkpoint with biases everywhere and tied embeddings."""
    directory.mkdir(parents=True, exist_ok=True)
    rebuilt = rebuild(vocab_path(tree, "starcoder"), directory, flavour="starcoder")
    config = {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": rebuilt.n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": N_LAYER,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "use_bias": True,
        "tie_word_embeddings": True,
        "eos_token_id": rebuilt.eos_id,
        "bos_token_id": rebuilt.bos_id,
        "torch_dtype": "bfloat16",
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rebuilt.n_vocab, N_EMBD)}
    kv = N_EMBD // N_HEAD * N_HEAD_KV
    for i in range(N_LAYER):
        for name, rows, columns in (
            ("self_attn.q_proj", N_EMBD, N_EMBD),
            ("self_attn.k_proj", kv, N_EMBD),
            ("self_attn.v_proj", kv, N_EMBD),
            ("self_attn.o_proj", N_EMBD, N_EMBD),
            ("mlp.c_fc", N_FF, N_EMBD),
            ("mlp.c_proj", N_EMBD, N_FF),
        ):
            shapes[f"model.layers.{i}.{name}.weight"] = (rows, columns)
            shapes[f"model.layers.{i}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= norm(f"model.layers.{i}.{name}")
    write_checkpoint(directory, config, shapes | norm("model.norm"))
    return directory


def write_bert(directory: Path, tree: Path, **changes: Any) -> Path:
    """A BERT as bge has it: WordPiece, the vector of [CLS]."""
    directory.mkdir(parents=True, exist_ok=True)
    n_vocab = write_wordpiece(vocabulary(tree, "bert-bge"), directory)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": N_LAYER,
        "num_attention_heads": N_HEAD,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (n_vocab, N_EMBD),
        "embeddings.position_embeddings.weight": (512, N_EMBD),
        "embeddings.token_type_embeddings.weight": (2, N_EMBD),
        **norm("embeddings.LayerNorm"),
    }
    for i in range(N_LAYER):
        for name, rows, columns in (
            ("attention.self.query", N_EMBD, N_EMBD),
            ("attention.self.key", N_EMBD, N_EMBD),
            ("attention.self.value", N_EMBD, N_EMBD),
            ("attention.output.dense", N_EMBD, N_EMBD),
            ("intermediate.dense", N_FF, N_EMBD),
            ("output.dense", N_EMBD, N_FF),
        ):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= norm(f"encoder.layer.{i}.{name}")
    write_checkpoint(directory, config, shapes, dtype="F32")
    write_modules(directory, "cls_token")
    return directory


def write_nomic(directory: Path, tree: Path) -> Path:
    """A NomicBert as nomic-embed-text-v1.5 has it: code of its own beside it, padded vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    n_vocab = -(-write_wordpiece(vocabulary(tree, "bert-bge"), directory) // 64) * 64
    config = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
        "vocab_size": n_vocab,
        "n_embd": N_EMBD,
        "n_head": N_HEAD,
        "n_inner": N_FF,
        "n_layer": N_LAYER,
        "n_positions": 8192,
        "max_trained_positions": 2048,
        "type_vocab_size": 2,
        "layer_norm_epsilon": 1e-12,
        "activation_function": "swiglu",
        "causal": False,
        "prenorm": False,
        **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
    }
    (directory / "code.py").write_text("raise SystemExit('run')")
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (n_vocab, N_EMBD),
        "embeddings.token_type_embeddings.weight": (2, N_EMBD),
        **norm("emb_ln"),
    }
    for i in range(N_LAYER):
        shapes |= {
            f"encoder.layers.{i}.attn.Wqkv.weight": (3 * N_EMBD, N_EMBD),
            f"encoder.layers.{i}.attn.out_proj.weight": (N_EMBD, N_EMBD),
            f"encoder.layers.{i}.mlp.fc11.weight": (N_FF, N_EMBD),
            f"encoder.layers.{i}.mlp.fc12.weight": (N_FF, N_EMBD),
            f"encoder.layers.{i}.mlp.fc2.weight": (N_EMBD, N_FF),
            **norm(f"encoder.layers.{i}.norm1"),
            **norm(f"encoder.layers.{i}.norm2"),
        }
    write_checkpoint(directory, config, shapes, dtype="F32")
    write_modules(directory, "mean_tokens")
    return directory


def write_qwen3_embedding(directory: Path, tree: Path, **changes: Any) -> Path:
    """A decoder that makes the vector of its last token, as Qwen3-Embedding does."""
    directory.mkdir(parents=True, exist_ok=True)
    rebuilt = rebuild(vocab_path(tree, "qwen2"), directory, flavour="qwen2")
    head_dim = 32
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": rebuilt.n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": N_LAYER,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "eos_token_id": rebuilt.eos_id,
        **changes,
    }
    shapes = {
        "embed_tokens.weight": (rebuilt.n_vocab, N_EMBD),
        "norm.weight": (N_EMBD,),
        **decoder_layers(head_dim, N_LAYER, "layers."),
    }
    write_checkpoint(directory, config, shapes, dtype="F32")
    write_modules(directory, "lasttoken")
    return directory


def write_embedding_gemma(directory: Path, tree: Path, **changes: Any) -> Path:
    """Gemma 3 that looks both ways, with two dense layers behind the mean, as EmbeddingGemma."""
    directory.mkdir(parents=True, exist_ok=True)
    rebuilt = rebuild(vocab_path(tree, "gemma"), directory, flavour="gemma")
    head_dim = 32
    config = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "vocab_size": rebuilt.n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": N_LAYER_GEMMA,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "max_position_embeddings": 2048,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rms_norm_eps": 1e-6,
        "use_bidirectional_attention": True,
        **changes,
    }
    layers = decoder_layers(head_dim, N_LAYER_GEMMA, "layers.")
    for i in range(N_LAYER_GEMMA):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            layers[f"layers.{i}.{name}.weight"] = (N_EMBD,)
    shapes = {"embed_tokens.weight": (rebuilt.n_vocab, N_EMBD), "norm.weight": (N_EMBD,)}
    write_checkpoint(directory, config, shapes | layers, dtype="F32")
    write_modules(directory, "mean_tokens")
    wide = 4 * N_EMBD
    for name, rows, columns in (("2_Dense", wide, N_EMBD), ("3_Dense", N_EMBD, wide)):
        dense = {"in_features": columns, "out_features": rows, "bias": False}
        write_checkpoint(directory / name, dense, {"linear.weight": (rows, columns)}, dtype="F32")
    modules = json.loads((directory / "modules.json").read_text())
    dense_type = "sentence_transformers.models.Dense"
    modules[2:2] = [{"path": f"{i}_Dense", "type": dense_type} for i in (2, 3)]
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def decoder_layers(head_dim: int, n_layer: int, prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(n_layer):
        for name, shape in (
            ("self_attn.q_proj", (N_HEAD * head_dim, N_EMBD)),
            ("self_attn.k_proj", (N_HEAD_KV * head_dim, N_EMBD)),
            ("self_attn.v_proj", (N_HEAD_KV * head_dim, N_EMBD)),
            ("self_attn.o_proj", (N_EMBD, N_HEAD * head_dim)),
            ("self_attn.q_norm", (head_dim,)),
            ("self_attn.k_norm", (head_dim,)),
            ("mlp.gate_proj", (N_FF, N_EMBD)),
            ("mlp.up_proj", (N_FF, N_EMBD)),
            ("mlp.down_proj", (N_EMBD, N_FF)),
            ("input_layernorm", (N_EMBD,)),
            ("post_attention_layernorm", (N_EMBD,)),
        ):
            shapes[f"{prefix}{i}.{name}.weight"] = shape
    return shapes


def write_modules(directory: Path, mode: str) -> None:
    """What sentence-transformers does with the vectors: pool, then bring to length one."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [{"path": p, "type": f"sentence_transformers.models.{kind}"} for p, kind in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": N_EMBD, f"pooling_mode_{mode}": True}
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling))


def vocabulary(tree: Path, name: str) -> list[str]:
    """The tokens of one of upstream's vocabulary files."""
    tokens = read_header(tree / f"models/ggml-vocab-{name}.gguf", arrays="full").kv
    return [str(token) for token in tokens["tokenizer.ggml.tokens"]]


def write_wordpiece(tokens: list[str], directory: Path) -> int:
    """tokenizer.json of an uncased BERT. In a GGUF, beginnings of words are marked, not rests."""
    control = [t for t in tokens if t.startswith("[") and t.endswith("]") and len(t) > 2]
    words = [t if t in control else t[1:] if t.startswith("\u2581") else f"##{t}" for t in tokens]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {f"{word[1:-1].lower()}_token": word for word in special}
    document = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(document))
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return len(words)


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (N_EMBD,), f"{name}.bias": (N_EMBD,)}


def change_document(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
