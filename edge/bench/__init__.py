"""Measurement: workloads run through `Engine.stream`, raw traces kept, figures derived from them.

Three rules: raw timestamps are stored with every result; a figure that was not measured is None,
never 0; a run that was disturbed is flagged, never dropped in silence.
"""
