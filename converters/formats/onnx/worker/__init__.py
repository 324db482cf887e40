"""What runs inside the pinned ONNX environment, where no boardfit is installed."""
