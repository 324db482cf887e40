"""What a checkpoint can become: one folder per format, whose row is in formats.toml. tools/ has the
environments of the converters; network/ is for vision and speech.
"""
