"""Files on disk: atomic writes, folders that cannot be left, files opened once."""
