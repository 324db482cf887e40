"""Boards as data, and what a model costs on them. Standard library only."""
