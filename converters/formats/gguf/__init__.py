"""GGUF: recipes as data (`recipes/*.toml`), ggml's quantizers, one streaming pass.

A recipe mirrors one of upstream's file types (`llama_ftype`) with its per-tensor rules, so that the
same recipe gives the same bytes as `llama-quantize`.
"""
