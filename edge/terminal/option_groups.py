"""Headings for the options in the help of commands that have many."""

from __future__ import annotations

import click

_QUESTION = "--task --to --document --system"
_SAMPLING = "--temperature --top-k --top-p --min-p --repeat-penalty --seed --max-tokens --stop"
_ENGINE = "--threads --ctx --kv-type --no-memory-check"
_TEMPLATE = "--thinking --template-var"
_ANSWER = {
    "Question": _QUESTION,
    "Time limits": "--within --first-within --on-miss --tell",
    "Sampling": _SAMPLING,
    "Chat template": _TEMPLATE,
    "Engine": _ENGINE,
}

#: Command, heading, options.
GROUPS: dict[str, dict[str, str]] = {
    "plan": {
        "Which board": "--device --any-device",
        "What to build": "--format --recipe --as-is --prefer --lora",
        "Engine": "--ctx --kv-type --threads --ubatch",
        "Limits": "--min-tps --max-ttft --prompt --for --workload --within --first-within",
        "Output": "--explain --json",
    },
    "build": {
        "Which board": "--device --with-engine --python",
        "What to build": "--format --recipe --ctx --kv-type --prefer --mtp --imatrix --lora"
        " --lora-scale --shape --sign",
        "Chat template": _TEMPLATE,
        "Quality": "--no-quality --accept-quality --quality-text --accept-tokenizer",
        "Output": "--output --force --threads --json",
    },
    "flash": {
        "Which board": "--inventory --via --ssh-config --wait",
        "Checks": "--no-rehearse --no-gate --min-speed --max-memory --require-signature"
        " --allow-older --force --drop-previous",
        "Images and cards": "--output --in-place --overwrite --image --list-cards --yes-erase"
        " --owner",
        "First boot": "--first-boot --user --password-file --enable-ssh",
        "Output": "--json",
    },
    "run": {**_ANSWER, "Question": f"{_QUESTION} --raw", "Safety": "--sandbox", "Output": "--json"},
    "chat": {**_ANSWER, "Conversation": "--load --session"},
    "serve": {
        **_ANSWER,
        "Who may ask": "--port --lan --no-token --name --allow-origin",
        "Limits": "--most",
        "Output": "--json",
    },
    "bench": {
        "What to measure": "--quick --protocol --minutes --repeats --gen --shape --cool-below",
        "Workload": "--workload --requests --within --first-within --on-miss --cold",
        "Chat template": _TEMPLATE,
        "Engine": _ENGINE,
        "Output": "--output --json",
    },
}


class GroupedCommand(click.Command):
    """A click command whose help lists its options below the headings of `GROUPS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        command = str(self.name)
        sections: dict[str, list[tuple[str, str]]]
        sections = {heading: [] for heading in (*GROUPS[command], "Other")}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections[find_heading(command, param)].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def find_heading(command: str, option: click.Option) -> str:
    """Return the heading of an option, or "Other" for one without a heading, such as --help."""
    for heading, options in GROUPS[command].items():
        if set(option.opts) & set(options.split()):
            return heading
    return "Other"
