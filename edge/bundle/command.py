"""`edge bundle show|verify|sign|pair|pack|unpack`."""

import json
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

import click

from boardfit.edge.bundle.bundle import (
    Bundle,
    bundle_signers,
    open_bundle,
    pack_bundle,
    unpack_bundle,
)
from boardfit.edge.bundle.quality_text import (
    note_lines,
    quality_lines,
    tokenizer_lines,
    tool_lines,
)
from boardfit.edge.errors import IntegrityError
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import ProgressLine
from boardfit.edge.trust.release import format_time
from boardfit.edge.units import format_bytes, printable

_PATH = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")
_OUTPUT = click.option("-o", "--output", type=_PATH, required=True, help="Bundle to write.")


@click.group()
def bundle() -> None:
    """Show, verify, sign, pair, pack or unpack a bundle."""


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and id as JSON.")
def show(path: Path, as_json: bool) -> None:
    """Show what a bundle contains. Check sizes and structure, but no hashes (see `verify`)."""
    opened = open_bundle(path, verify=False, check_signature=False)
    if as_json:
        echo(json.dumps({"id": opened.id, **opened.manifest}))
        return
    for line in describe(opened):
        echo(line)


def describe(opened: Bundle) -> list[str]:
    model, plan = opened.manifest["model"], opened.plan
    lines = [
        f"{printable(opened.name)}  {plan.recipe} for {plan.device}  ({opened.id[:12]})",
        f"  model    {printable(str(model.get('arch')))}, licence "
        f"{printable(str(model.get('license') or 'not stated'))}",
        f"  plan     context {plan.n_ctx}, KV {plan.kv_type}, {plan.n_threads} threads; "
        f"peak {format_bytes(plan.peak_bytes)} of {format_bytes(plan.budget_bytes)}",
    ]
    if opened.release.number:
        lines.append(f"  {release_line(opened)}")
    small = opened.manifest.get("small")
    if small:
        lines.append(
            f"  small    {printable(str(small['model'].get('name')))}, {small['plan']['recipe']}: "
            "answers when time is too short for the model"
        )
    lines += [f"  quality  {line}" for line in quality_lines(opened.manifest)]
    lines += [f"  note     {note}" for note in note_lines(opened.manifest)]
    lines += [f"  tools    {line}" for line in tool_lines(opened.manifest)]
    lines += [f"  reads    {line}" for line in tokenizer_lines(opened.manifest)]
    lines += [f"  file     {f.name}  {format_bytes(f.n_bytes)}  {f.role}" for f in opened.files]
    return lines


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("--key", "key_file", metavar="KEY", help="Require a signature by this key.")
@_JSON
def verify(path: Path, key_file: str | None, as_json: bool) -> None:
    """Read every byte of a bundle, compare it with the manifest, and check its signature."""
    with closing(ProgressLine("verifying")) as progress:
        opened = open_bundle(path, verify=True, progress=progress)
    signed_by = bundle_signers(opened)
    if key_file is not None:
        from boardfit.edge.trust.signing import public_keys

        if not set(public_keys(key_file)) & set(signed_by):
            got = ", ".join(map(str, signed_by)) or "no one"
            raise IntegrityError(
                f"{path} is signed by {got}, not by {key_file}",
                next_step="get it from the owner of that key, or sign it: edge bundle sign",
            )
        if (end := opened.release.expires_at) and end < datetime.now(timezone.utc):
            raise IntegrityError(
                f"{path} expired at {format_time(end)}",
                next_step="get a newer release from its signer",
            )
    if as_json:
        signers = [key.fingerprint for key in signed_by]
        record = {"id": opened.id, "ok": True, "n_bytes": opened.n_bytes, "signed_by": signers}
        echo(json.dumps(record))
        return
    echo(f"{path}: {len(opened.files)} files, {format_bytes(opened.n_bytes)}, all as listed")
    for key in signed_by:
        echo(f"  signed by {key}")
    if signed_by:
        echo(f"  {release_line(opened)}")
    if not signed_by:
        echo("  not signed")


@bundle.command()
@click.argument("path", type=_PATH)
@click.argument("key_file", metavar="KEY", type=_PATH, required=False)
@click.option(
    "--release", "number", type=int,
    help="Number of this release; it must grow. [default: the time, as 20261130161500]",
)  # fmt: skip
@click.option(
    "--expires", metavar="WHEN",
    help="Boards stop starting this release then: 90d, 12w, 1y or 2027-06-30. [default: never]",
)  # fmt: skip
@_JSON
def sign(
    path: Path, key_file: Path | None, number: int | None, expires: str | None, as_json: bool
) -> None:
    """Sign a bundle with a private KEY (default: the key from `edge key new`).

    The bundle is verified first. The first signature gives it a release number, and thereby a new
    id. A board accepts no lower number of the same name later. Further signatures keep the id and
    the earlier signatures.
    """
    from boardfit.edge.bundle.sign import sign_bundle
    from boardfit.edge.trust.release import new_release
    from boardfit.edge.trust.signing import default_key_path, signing_key

    asked = number is not None or expires is not None
    release = new_release(number, expires) if asked else None
    signer = signing_key(key_file or default_key_path())
    public = sign_bundle(path, signer, release)
    opened = open_bundle(path, verify=False, check_signature=False)
    if as_json:
        record = {"id": opened.id, "signed_by": public.fingerprint, **opened.release.entries()}
        echo(json.dumps(record))
    else:
        echo(f"{path}: signed by {public}")
        echo(f"  {release_line(opened)}")


def release_line(opened: Bundle) -> str:
    release = opened.release
    if release.released_at is None and release.expires_at is None:
        return f"release {release.number or 'without a number'}"
    made = "" if release.released_at is None else f" of {format_time(release.released_at)}"
    end = "never" if release.expires_at is None else f"at {format_time(release.expires_at)}"
    return f"release {release.number}{made}, expires {end}"


@bundle.command()
@click.argument("big", type=_PATH)
@click.argument("small", type=_PATH)
@_OUTPUT
@click.option(
    "--sign", "key_file", metavar="KEY", type=_PATH, help="Sign the result with this private key."
)
def pair(big: Path, small: Path, output: Path, key_file: Path | None) -> None:
    """Add the model of bundle SMALL to bundle BIG, as a fallback.

    With --within, SMALL answers the questions that BIG cannot answer in time. Both models must fit
    in the board's memory together.
    """
    from boardfit.edge.bundle.pair import pair_bundles

    signer = None
    if key_file is not None:
        from boardfit.edge.trust.signing import signing_key

        signer = signing_key(key_file)
    made = pair_bundles(big, small, output, signer)
    echo(f"{output}: {len(made.files)} files, {format_bytes(made.n_bytes)}")


@bundle.command()
@click.argument("path", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Output file. Default: PATH.tar")
def pack(path: Path, output: Path | None) -> None:
    """Pack a bundle into one uncompressed tar file."""
    target = output or path.with_name(path.name + ".tar")
    n_bytes = pack_bundle(path, target)
    echo(f"{target}: {format_bytes(n_bytes)}")


@bundle.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@_OUTPUT
def unpack(path: Path, output: Path) -> None:
    """Unpack a packed bundle and verify it."""
    opened = unpack_bundle(path, output)
    echo(f"{output}: {printable(opened.name)}, every byte verified")
