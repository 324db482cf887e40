"""Headings for the options in the help of commands that have many."""

import json
import pkgutil

import click

#: Command, heading, options: the table in `option_groups.json`.
GROUPS: dict[str, dict[str, str]] = json.loads(
    pkgutil.get_data(__package__, "option_groups.json") or ""
)


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
