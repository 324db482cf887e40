"""boardfit on the host: from a checkpoint to a 4-bit artifact in a bundle. Never on the board."""
