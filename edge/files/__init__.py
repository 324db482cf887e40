"""Readers of model files. Hostile input is checked here first."""
