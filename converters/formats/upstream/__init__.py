"""Checkpoints without a family of ours: upstream's own converter makes a GGUF of them first."""
