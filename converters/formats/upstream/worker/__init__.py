"""What runs in the pinned environment of upstream's converter."""
