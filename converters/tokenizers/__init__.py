"""Tokenizers of checkpoints → GGUF metadata (loading.py), verified by what they do (verify.py): the
engine's ids against the checkpoint's own tokenizer, before the hours of quantizing.
"""
