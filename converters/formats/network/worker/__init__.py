"""Quantizing networks that are no language models; runs in the pinned environments, see
`boardfit.converters.formats.network.quantize`.
"""
