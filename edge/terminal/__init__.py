"""What a terminal shows and takes: output, progress, options and their groups."""
