"""`edge imatrix`."""

import os
from pathlib import Path

import click

from boardfit.converters.imatrix.collect import compute
from boardfit.edge.errors import UsageError
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import TerminalReporter
from boardfit.edge.units import printable


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("text", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write."
)
@click.option("--chunk", "n_ctx", type=click.IntRange(min=16), default=512, show_default=True,
              help="Tokens per chunk.")  # fmt: skip
@click.option("--max-chunks", type=click.IntRange(min=1), help="Stop after this many chunks.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Number of threads. [default: all cores]"
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
def imatrix(
    model: Path,
    text: Path,
    output: Path,
    n_ctx: int,
    max_chunks: int | None,
    threads: int | None,
    force: bool,
) -> None:
    """Measure MODEL's activations over TEXT and write an importance matrix in upstream's format.

    MODEL is a GGUF file, preferably unquantized (`edge build … --recipe f16`). TEXT is UTF-8. Pass
    the result, or the text itself, to `edge build … --imatrix`.
    """
    if output.is_dir() or (os.path.lexists(output) and not force):
        raise UsageError(f"{output} exists", next_step="choose another -o, or add --force")
    with TerminalReporter() as reporter:
        reporter.stage("weighing activations")
        matrix = compute(
            model, text, output, n_ctx=n_ctx, max_chunks=max_chunks, threads=threads,
            progress=reporter.progress,
        )  # fmt: skip
    echo(f"{output}: {len(matrix.entries)} matrices over {printable(text.name)}")
