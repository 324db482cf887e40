"""LiteRT: `.litertlm` containers and plain `.tflite` models."""
