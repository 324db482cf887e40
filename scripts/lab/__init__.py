"""The laboratory: what made the sample model, and what proves the predictions. It is not shipped.

Scripts and tests import it; nothing in edge, converters or device_profiles does.
"""
