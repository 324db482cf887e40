"""`edge push` and `edge pull`."""

import json
from pathlib import Path

import click

from boardfit.converters.oci.pull import pull
from boardfit.converters.oci.push import push
from boardfit.converters.oci.registry import Registry, parse_reference
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.terminal.output import echo, shell_line
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.trust.signing import public_keys
from boardfit.edge.units import format_bytes, format_seconds, printable

plain_http_option = click.option(
    "--plain-http", is_flag=True, help="Use HTTP without TLS. [default: only on loopback]"
)


@click.command("push")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("reference")
@plain_http_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def push_command(bundle: Path, reference: str, plain_http: bool, as_json: bool) -> None:
    """Push BUNDLE to an OCI registry at REFERENCE: registry/repository:tag.

    The bundle becomes a ModelPack artifact with one layer per file, including its signature. Layers
    that the registry already has are not sent. Credentials come from `docker login`.
    """
    place = parse_reference(reference)
    with TerminalReporter(quiet=as_json, in_bytes=True) as reporter:
        reporter.stage("verifying the bundle")
        opened = open_bundle(bundle, progress=reporter.progress)
        with Registry(place, plain_http=plain_http) as registry:
            pushed = push(opened, registry, reporter)
    if as_json:
        echo(json.dumps(pushed.to_dict()))
        return
    echo(f"{pushed.reference}: {printable(opened.name)} ({opened.id[:12]})")
    echo(
        f"  sent     {format_bytes(pushed.n_sent)} in {format_seconds(pushed.seconds)}, "
        f"{format_bytes(pushed.n_there)} were there"
    )
    echo(f"  digest   {pushed.digest}")
    echo(f"  next: {shell_line('edge', 'pull', pushed.reference, 'DIR')}")


@click.command("pull")
@click.argument("reference")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--key", metavar="KEY", help="Require a signature by this key (.pub file or line).")
@click.option(
    "--allow-older",
    is_flag=True,
    help="With --key: accept an older release than was pulled before.",
)
@plain_http_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull_command(
    reference: str,
    directory: Path,
    key: str | None,
    allow_older: bool,
    plain_http: bool,
    as_json: bool,
) -> None:
    """Pull the bundle at REFERENCE (registry/repository:tag, or …@sha256:…) into DIRECTORY.

    Every byte is compared with its digest. An interrupted pull resumes. With --key, an expired
    release is refused, and an older one than was pulled before.
    """
    place = parse_reference(reference)
    keys = public_keys(key) if key else ()
    with (
        TerminalReporter(quiet=as_json, in_bytes=True) as reporter,
        Registry(place, plain_http=plain_http) as registry,
    ):
        pulled = pull(registry, directory, reporter, keys, allow_older=allow_older)
    if as_json:
        echo(json.dumps(pulled.to_dict()))
        return
    echo(
        f"{printable(str(directory))}: {format_bytes(pulled.n_bytes)} of {pulled.reference}, "
        "every byte verified"
    )
    echo(
        f"  received {format_bytes(pulled.n_received)} in {format_seconds(pulled.seconds)}, "
        f"{format_bytes(pulled.n_there)} were there"
    )
    if pulled.signed_by:
        echo(f"  signed   {pulled.signed_by}")
    chat, flash = shell_line("edge", "chat", directory), shell_line("edge", "flash", directory)
    echo(f"  next: {chat}, {flash} TARGET")
