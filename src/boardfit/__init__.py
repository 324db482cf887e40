"""boardfit: from a language model to a board in your hand. Plan, build, chat, measure; offline.

    import boardfit

    boardfit.plan("sample", device="raspberry-pi-5-8gb")
    boardfit.build("sample", device="this-machine", output="here")
    with boardfit.open("here") as model:
        for event in model.chat("What can you do?", within_s=2):
            print(event.text, end="")
    boardfit.serve("here")
    boardfit.flash("here", "ssh://pi@kitchen")

docs/python-api.md explains them. Importing this loads nothing; each name is imported when used.
"""

TYPE_CHECKING = False  # as in `typing`, whose import would take longer than all of this
if TYPE_CHECKING:
    from boardfit.converters.api import build, plan
    from boardfit.edge import errors
    from boardfit.edge.api import bench, devices, flash, open
    from boardfit.edge.serve.server import serve

    __version__: str

__all__ = ["bench", "build", "devices", "errors", "flash", "open", "plan", "serve"]

# Name → where it is defined ("module" or "module:attribute"), and the pip extra that it needs.
_WHERE = {
    "bench": ("boardfit.edge.api:bench", None),
    "build": ("boardfit.converters.api:build", "host"),
    "devices": ("boardfit.edge.api:devices", None),
    "errors": ("boardfit.edge.errors", None),
    "flash": ("boardfit.edge.api:flash", None),
    "open": ("boardfit.edge.api:open", None),
    "plan": ("boardfit.converters.api:plan", "convert"),
    "serve": ("boardfit.edge.serve.server:serve", "serve"),
    "__version__": ("boardfit.edge:__version__", None),
}


if not TYPE_CHECKING:  # a checker shall not take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _WHERE:
            raise AttributeError(f"module 'boardfit' has no attribute {name!r}")
        from importlib import import_module

        target, extra = _WHERE[name]
        module, _, attribute = target.partition(":")
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            from boardfit.edge.requirements import explain_missing

            raise explain_missing(error, f"boardfit.{name}", extra) from None
        globals()[name] = getattr(found, attribute) if attribute else found
        return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
