"""Answer other programs over HTTP: apps, homes, browsers, each request within its time.

`ask` is the one request that every wire becomes, `wire/` the wires themselves, `runner` the queue
and the thread of the engine, `app` the table of routes, `guard` who may ask, `command` the command.
"""
