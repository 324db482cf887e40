"""What board is this: pure parsers over /proc and /sys text, and thin readers around them.

    from edge.probe.machine import probe_this_machine

A sensor or figure that is not there is None, never 0.
"""
