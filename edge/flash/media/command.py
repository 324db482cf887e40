"""`edge flash` for image: and card: targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import EngineError
from boardfit.edge.flash.flash import FlashOptions, FlashReport
from boardfit.edge.flash.gate import GateVerdict, explain_end, read_report
from boardfit.edge.flash.media.image import ImageOptions, ImageTarget, check_target, flash_image
from boardfit.edge.flash.media.options import MediaOptions
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.process.child import python_argv, run_child
from boardfit.edge.slots.health import judge
from boardfit.edge.terminal.progress import Reporter


def flash_media(
    bundle: Bundle, target: FlashTarget, options: FlashOptions, media: MediaOptions,
    reporter: Reporter, *, force: bool = False,
) -> FlashReport:  # fmt: skip
    """Flash an image or a card. Raises as `flash_image` and `write_card` do, and EngineError when
    the bundle does not even answer on this machine.
    """
    image_options = ImageOptions(
        media.output, media.in_place, media.overwrite, media.owner_ids(), media.first_boot,
        media.boot_files(), signature=options.signature,
    )  # fmt: skip
    if target.scheme == "image":
        check_target(Path(target.folder), image_options)
    verdict = try_here(bundle, options, reporter) if options.gate else GateVerdict()
    if verdict.failures:
        raise EngineError(
            f"{bundle.path} failed its health gate on this machine: "
            + "; ".join(verdict.failures)
            + f". {target} was not touched",
            next_step=verdict.next_step,
        )
    image_options = replace(image_options, health=verdict.health)
    if target.scheme == "image":
        where = ImageTarget(Path(target.folder), target.partition)
        report = flash_image(bundle, where, image_options, reporter)
    else:
        from boardfit.edge.flash.media.card import flash_card

        report = flash_card(
            bundle, target.folder, target.partition, media, image_options, reporter, force=force
        )
    report.notes += verdict.notes
    return report


def try_here(bundle: Bundle, options: FlashOptions, reporter: Reporter) -> GateVerdict:
    """Ask the bundle the fixed question with this machine's engine, in a process of its own. The
    board's speed and memory may differ.
    """
    reporter.stage("trying it on this machine")
    path = str(bundle.path.absolute())
    got = run_child(python_argv("boardfit", "slots", "check", path, "--json"))
    done = Done(got.returncode, got.stdout, got.stderr.decode("utf-8", "replace"))
    if (health := read_report(done)) is None:
        return GateVerdict(failures=[explain_end(done)])
    if health.error_kind == "EngineMissingError":
        return GateVerdict(notes=["hashes were verified; this machine has no engine to load it"])
    health = replace(health, decode_tps=None, peak_rss_bytes=None)
    note = "tried with this machine's engine: the board's speed and memory may differ"
    return GateVerdict(health, judge(health, bundle.plan, min_speed=0, max_memory=0), [note])
