"""LiteRT: `.litertlm` and `.tflite` files, through its C interface or an interpreter."""
