"""Networks that are not language models: vision and speech, as ONNX or TFLite files."""
