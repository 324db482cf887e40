"""States of system prompts that a bundle brings along, so that its board need not read them."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.converters.build.jobs import BuildJob
from boardfit.converters.documents import read_text
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines import ENGINES, EngineSettings, is_installed, open_engine
from boardfit.edge.engines.kv_state import remove_mac
from boardfit.edge.engines.settings import usable_cpus
from boardfit.edge.errors import EngineMissingError, InputError, UnsupportedModelError, UsageError
from boardfit.edge.states.store import MIN_TOKENS, file_label, system_prefix
from boardfit.edge.template.tool_format import ToolFormat
from boardfit.edge.template.tools import Tool, ToolUse
from boardfit.edge.types import Engine, GenerationConfig, Plan

FOLDER = "prefix"
MAX_PROMPT_BYTES = 1 << 20
#: Prefill in steps of one length, so that the same inputs give the same bytes.
_STEP = 256


@dataclass(frozen=True)
class WarmState:
    """A state to put into a bundle: its name there, where it lies now, and what it holds."""

    name: str
    path: Path
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.name, "n_tokens": self.n_tokens, "n_bytes": self.path.stat().st_size}


class WarmPrompt(NamedTuple):
    """A system prompt, and the tools that are offered with it."""

    text: str
    tools: tuple[Tool, ...] = ()


def read_prompts(files: Sequence[Path]) -> dict[str, WarmPrompt]:
    """The system prompts in the files, by the files' names without suffix. A .json file holds the
    system message and the tools of a request.

    Raises InputError for one that is empty, too long or no text, UsageError for two of one name.
    """
    prompts: dict[str, WarmPrompt] = {}
    for path in files:
        text, name = read_text(path, MAX_PROMPT_BYTES).strip(), file_label(path.stem)
        if not text:
            raise InputError(f"{path}: there is no system prompt in it")
        prompt = _read_request(text, path) if path.suffix == ".json" else WarmPrompt(text)
        if name in prompts:
            raise UsageError(f"--warm: two files are called {name}", next_step="rename one")
        prompts[name] = prompt
    return prompts


def _read_request(text: str, path: Path) -> WarmPrompt:
    try:
        request = json.loads(text)
        first = (request.get("messages") or [{}])[0]
        system = first.get("content") if first.get("role") == "system" else None
        found = tuple(map(Tool.from_dict, request.get("tools") or ()))
        return WarmPrompt(system if isinstance(system, str) else "", found)
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        raise InputError(
            f"{path}: it is no request", next_step='write {"messages": […], "tools": […]}'
        ) from None


def check_warm(spec: ModelSpec, jobs: Sequence[BuildJob]) -> None:
    """Raise before the long work where no state could be made."""
    if spec.chat_template is None:
        raise UsageError(
            f"{spec.name} has no chat template, so no system prompt", next_step="leave --warm out"
        )
    for engine in sorted({job.plan.engine for job in jobs}):
        if not is_installed(engine):
            raise EngineMissingError(
                f"--warm: the engine {engine} is not installed", next_step=ENGINES[engine].pip_line
            )


def make_warm(
    prompts: dict[str, WarmPrompt],
    job: BuildJob,
    plan: Plan,
    model: OpenedFile,
    folder: Path,
    form: ToolFormat | None,
) -> list[WarmState]:
    """Compute the states of all prompts with the engine and the settings that the board will use.
    `model` is the artifact, its hash known: that is what the states belong to.

    Raises UnsupportedModelError for an engine that saves no states, InputError for a prompt that is
    too short to be worth a file, or too long for the context.
    """
    if not prompts or form is None:
        return []
    settings = EngineSettings.to_use(plan).replace(
        n_threads=usable_cpus(), prefill_chunk=_STEP, adapt_threads=False
    )
    if "neon" in job.device.isa:  # there the library chooses how attention is computed
        settings = settings.replace(flash_attn="auto")
    with closing(open_engine(plan.engine, model, settings)) as engine:
        if not engine.describe().details.get("can_save_prefix"):
            raise UnsupportedModelError(
                f"--warm: the engine {plan.engine} saves no states",
                next_step="leave --warm out, or choose another --format",
            )
        return [save_state(engine, name, each, folder, form) for name, each in prompts.items()]


def save_state(
    engine: Engine, name: str, prompt: WarmPrompt, folder: Path, form: ToolFormat
) -> WarmState:
    use = ToolUse(form, prompt.tools) if prompt.tools else None
    choice = replace(engine.choice, tools=use)
    tokens = system_prefix(partial(engine.render, choice=choice), prompt.text)
    if not MIN_TOKENS <= len(tokens) < engine.n_ctx:
        raise InputError(
            f"--warm {name}: {len(tokens)} tokens; from {MIN_TOKENS} up to the context of "
            f"{engine.n_ctx} can be kept"
        )
    path = folder / f"{name}.kv"
    folder.mkdir(exist_ok=True)
    engine.reset()
    for _ in engine.stream(tokens, GenerationConfig(max_tokens=1, ignore_eos=True)):
        pass  # the token itself is not read, so that the cache ends with the prompt
    engine.save_prefix(path, len(tokens))
    remove_mac(path)
    return WarmState(f"{FOLDER}/{name}.kv", path, len(tokens))
