"""Identify and measure a board: pure parsers over /proc and /sys text, thin readers, and timings.

    from boardfit.edge.probe.machine import probe_this_machine, read_report

`system` is where text comes from (this machine, a captured tree, a board behind ssh or adb);
`cpu`, `memory`, `sensors`, `storage`, `identity` parse it; `machine` puts a profile together;
`measure` and `kernels` time what this machine really does. A sensor or figure that is not there is
None, never 0.
"""
