"""Bundles: the only thing that leaves the host."""
