"""onnxruntime-genai: folders of an ONNX model through its C interface."""
