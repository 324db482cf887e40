"""Open a model for planning: a plan needs shapes only, and the catalogue has those of public
models. So a model that is not here can be planned for without a download and offline.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from boardfit.converters.formats.gguf.recipe import list_recipes
from boardfit.converters.formats.upstream.convert import open_any_model
from boardfit.converters.plan.compare import make_hollow_spec
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.source.checkpoint import AdapterRequest
from boardfit.converters.source.hub import HubName
from boardfit.converters.source.resolve import parse_name
from boardfit.converters.spec import ModelSpec
from boardfit.converters.tokenizers.turns import check_words
from boardfit.device_profiles.models import find_model
from boardfit.edge.errors import InputError
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.units import printable


@dataclass(frozen=True)
class Planned:
    """A model to plan for; `note` if it is only the catalogue's, `recipe` if its name has one."""

    spec: ModelSpec
    note: str | None = None
    recipe: str | None = None

    def options(self, options: PlanOptions) -> PlanOptions:
        """With the recipe that the name asks for, unless an option asks for one."""
        if self.recipe is None or options.recipe is not None:
            return options
        return replace(options, recipe=self.recipe)


def open_to_plan(ref: str, lora: AdapterRequest | None = None) -> Planned:
    """A model on disk or on the hub; where it is in neither, its shape from the catalogue. An
    adapter needs the weights themselves.

    Raises InputError as `open_model` does, when the catalogue does not know the model either, and
    for a chat template that a build would refuse.
    """
    planned = _plan_from(ref, lora)
    if planned.spec.chat_template is not None:
        check_words(planned.spec.chat_template)
    return planned


def _plan_from(ref: str, lora: AdapterRequest | None) -> Planned:
    if lora is not None or Path(ref).expanduser().exists():
        return Planned(_open(ref, lora))
    name = parse_name(ref)
    known = None
    if isinstance(name, str):
        known = find_model(name)
    elif isinstance(name, HubName):
        known = find_model(name.repo_id)
    if known is None or not known.exact:
        return Planned(_open(ref))
    why = f"{printable(ref)} is a name of the catalogue"
    if isinstance(name, HubName):
        try:
            return Planned(_open(ref))
        except InputError as error:
            why = str(error)
    note = f"{why}. The plan is from the published shape of {known.repo}; nothing was downloaded"
    return Planned(make_hollow_spec(known), note, _named_recipe(ref))


def _open(ref: str, lora: AdapterRequest | None = None) -> ModelSpec:
    with TerminalReporter() as reporter:
        return open_any_model(
            ref, progress=reporter.progress, say=reporter.say, heads_only=lora is None, lora=lora
        )


def _named_recipe(ref: str) -> str | None:
    """`q4_k_m` of `owner/name:Q4_K_M` and of `owner/name/file-Q4_K_M.gguf`."""
    recipes = "|".join(re.escape(recipe.id) for recipe in list_recipes())
    found = re.search(rf"[-._:]({recipes})(?:\.gguf)?(?:\?.*)?\Z", ref, re.IGNORECASE)
    return found[1].lower() if found else None
