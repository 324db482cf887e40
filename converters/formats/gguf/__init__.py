"""GGUF: recipes as data, ggml's quantizers, one streaming pass. A recipe mirrors one of upstream's
file types with its per-tensor rules, so that it gives the same bytes as `llama-quantize`.
"""
