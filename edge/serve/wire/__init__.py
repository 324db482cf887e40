"""The wires: pure functions from bodies to requests and from answers to bytes, with no I/O."""
