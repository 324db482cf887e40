"""Answer other programs over HTTP: apps, homes, browsers, each request within its time.

`ask` is the one request that every wire becomes, `wire/` the wires themselves. `queue` has the
requests and the engine's thread, `app` the routes, `access` who may ask, `page/` the chat page.
"""
