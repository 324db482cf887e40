"""`edge race`: find the engine that wins on this machine. Each has its own process."""
