"""What a bundle carries for a board: engines, offline parts, a rehearsal of its first day."""
