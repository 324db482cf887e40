"""ONNX: models for ONNX Runtime GenAI."""
