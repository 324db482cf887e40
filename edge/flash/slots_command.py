"""`edge slots`: list, verify, check, bench and remove the releases on a board."""

import json
import os
from contextlib import closing
from pathlib import Path

import click

from boardfit.edge.bench.store import sealed
from boardfit.edge.errors import EngineError
from boardfit.edge.flash.connect import connect, ssh_config_option
from boardfit.edge.flash.target import parse_flash_target
from boardfit.edge.slots.failed_starts import MAX_FAILED
from boardfit.edge.slots.health import check_release, judge
from boardfit.edge.slots.store import Slots
from boardfit.edge.terminal.output import echo, shell_line
from boardfit.edge.terminal.progress import ProgressLine, TerminalReporter
from boardfit.edge.units import format_bytes, printable


@click.group()
def slots() -> None:
    """List, verify, bench or remove the releases on a board, or check a bundle on it."""


@slots.command("list")
@click.argument("target")
@ssh_config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per release.")
def list_command(target: str, ssh_config: Path | None, as_json: bool) -> None:
    """List the releases at TARGET (dir:, ssh:// or adb://), the current one first."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        found = Slots(board.files).releases()
        free = board.files.free_bytes() if found else 0
    if not found and not as_json:
        echo(f"there are no releases on {board.place} yet; edge flash puts one there")
        return
    if as_json:
        for release in found:
            echo(json.dumps(release.to_dict()))
        return
    for release in found:
        facts = release.facts
        name = printable(str(facts.get("name", "?")), 40)
        detail = f"{facts.get('recipe', '?')} for {facts.get('device', '?')}"
        when = printable(str(facts.get("flashed_at", "")), 30)
        echo(
            f"{release.id[:12]}  {release.role:<8}  {format_bytes(release.n_bytes):>9}  {name}  "
            f"{printable(detail, 60)}  {when}"
        )
        if n_failed := facts.get("failed_starts"):
            gave_way = n_failed >= MAX_FAILED and release.role != "current"
            echo(
                f"{'':12}  {n_failed} failed starts"
                + ("; it gave way to the release before" if gave_way else "")
            )
    echo(f"{len(found)} releases; {format_bytes(free)} free", err=True)


@slots.command("verify")
@click.argument("target")
@ssh_config_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(target: str, ssh_config: Path | None, as_json: bool) -> None:
    """Read every byte of the current release at TARGET and compare it with its manifest."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        store = Slots(board.files)
        current = store.require_current(board.place)
        bundle = store.verify(current)
    if as_json:
        echo(json.dumps({"target": board.place, "current": current, "ok": True}))
    else:
        echo(
            f"{board.place}: {printable(bundle.name)} ({current[:12]}), "
            f"{format_bytes(bundle.n_bytes)}, every byte as built"
        )


@slots.command("bench")
@click.argument("target")
@click.option("--quick", is_flag=True, help="Use short prompts and answers.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    help="Number of repetitions. [default: as `edge bench`]",
)
@click.option("--gen", "n_gen", type=click.IntRange(min=2), help="Tokens per decode test.")
@click.option(
    "--threads", "n_threads", type=click.IntRange(min=1),
    help="Number of threads. [default: the plan's]",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Append results to this file."
)
@ssh_config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result lines instead of a report.")
def bench_command(
    target: str, quick: bool, repeats: int | None, n_gen: int | None, n_threads: int | None,
    output: Path | None, ssh_config: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Run `edge bench` with the current release at TARGET and store the results here.

    `edge report` and `edge compare` read them like the results of this machine.
    """
    from boardfit.edge.bench.store import find_month_file
    from boardfit.edge.flash.board_bench import bench_board
    from boardfit.edge.report.figures import group_runs
    from boardfit.edge.report.kinds import run_lines

    path = output or find_month_file()
    reporter = TerminalReporter(quiet=as_json, is_timed=False, in_bytes=True)
    board = connect(parse_flash_target(target), ssh_config=ssh_config)
    with closing(board), reporter:
        options = {
            "--quick": quick, "--repeats": repeats, "--gen": n_gen, "--threads": n_threads,
        }  # fmt: skip
        records = bench_board(board, options, path, reporter)
    if as_json:
        for record in records:
            echo(json.dumps({k: v for k, v in record.items() if k != "traces"}))
        return
    for run in group_runs(records):
        echo("\n".join(run_lines(run)))
    where = shell_line("edge", "report", path) if output else "edge report --last"
    echo(f"\nstored in {printable(str(path))}; next: {where}", err=True)


@slots.command("remove")
@click.argument("target")
@click.argument("release")
@ssh_config_option
def remove_command(target: str, release: str, ssh_config: Path | None) -> None:
    """Delete a RELEASE (the beginning of its id) at TARGET. It cannot be the current one."""
    with closing(connect(parse_flash_target(target), ssh_config=ssh_config)) as board:
        store = Slots(board.files)
        with store.hold_lock():
            found = store.find(release)
            store.remove([found])
    echo(f"{board.place}: {found[:12]} removed")


@slots.command("check")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Hash only the files that were not hashed before.")
@click.option(
    "--url", help="Ask the server at this address, which serves BUNDLE, and load nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check_command(bundle: Path, quick: bool, url: str | None, as_json: bool) -> None:
    """Load BUNDLE on this machine, ask it a fixed question, and judge the answer.

    The health gate of `edge flash` runs this command on the board. A server's token is read from
    the environment variable BOARDFIT_TOKEN.
    """
    if url is not None:
        from boardfit.edge.serve.check import check_server

        health = check_server(url.rstrip("/"), os.environ.get("BOARDFIT_TOKEN"))
    else:
        with closing(ProgressLine("verifying")) as line:
            health = check_release(bundle, quick=quick, progress=line)
    if as_json:
        echo(json.dumps(sealed(health.to_dict())))
        return
    from boardfit.edge.bundle.bundle import open_bundle

    failures = [health.error] if health.error else judge(health, open_bundle(bundle).plan)
    if failures:
        raise EngineError(f"{bundle}: " + "; ".join(failures))
    echo(f"{bundle}: healthy; answers “{printable(health.text.strip(), 80)}”")
