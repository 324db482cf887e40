"""Identify and measure a board: pure parsers over /proc and /sys text, thin readers, timings."""
