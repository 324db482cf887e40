"""Proofs of the memory model: predicted bytes beside those of real runs."""
