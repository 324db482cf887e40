"""Points where a power cut can hit: every write, rename and fsync. Nothing happens there.

tests/edge/flash/power_cut.py replaces `hook`, so that one of them is the last thing that happens.
"""


class FaultHook:
    """Do nothing at a point."""

    def pass_point(self) -> None:
        """Run before a write, rename or fsync of this process."""

    def cut_steps(self, steps: tuple[str, ...]) -> tuple[str, ...]:
        """Choose which of the next shell commands a board runs. Each is a point."""
        return steps

    def finish_steps(self) -> None:
        """Run after the shell commands."""


hook = FaultHook()


def fault_point() -> None:
    hook.pass_point()
