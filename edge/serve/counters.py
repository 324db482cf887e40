"""Counters for Prometheus, in its text format (version 0.0.4). No prompt, no name of a client."""

import threading
from collections import Counter

from boardfit.edge.chat.session import Answer
from boardfit.edge.deadline.outcome import Outcome
from boardfit.edge.errors import DeadlineError
from boardfit.edge.serve.spoilers import PrefixLost

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "requests_total": "Requests by route and status.",
    "prompt_tokens_total": "Tokens of prompts, by whether they were computed or reused.",
    "prefix_lost_tokens_total": "Tokens read again because the text before them changed, by class.",
    "answer_tokens_total": "Tokens of answers.",
    "deadline_met_total": "Answers within their time.",
    "deadline_missed_total": "Answers past their time.",
    "deadline_refused_total": "Requests refused for time, by cause.",
    "errors_total": "Requests that failed, by kind of error.",
    "queue_seconds_total": "Seconds that requests waited.",
    "answer_seconds_total": "Seconds from a request to its last token.",
}


class Counters:
    """Counts what the server did. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, labels: str = "", amount: float = 1) -> None:
        with self._lock:
            self._counts[name, labels] += amount  # type: ignore[assignment]

    def count_request(self, route: str, status: int) -> None:
        self.count("requests_total", f'{{route="{route}",status="{status}"}}')

    def count_refusal(self, why: str) -> None:
        self.count("deadline_refused_total", f'{{why="{why}"}}')

    def count_answer(self, answer: Answer, outcome: Outcome | None, queue_s: float) -> None:
        self.count("prompt_tokens_total", '{from="reused"}', answer.n_reused)
        self.count("prompt_tokens_total", '{from="computed"}', answer.n_prompt - answer.n_reused)
        self.count("answer_tokens_total", "", answer.n_out)
        self.count("queue_seconds_total", "", queue_s)
        self.count("answer_seconds_total", "", answer.total_s)
        if outcome is not None:
            self.count("deadline_met_total" if outcome.met else "deadline_missed_total")

    def count_lost(self, lost: PrefixLost) -> None:
        self.count("prefix_lost_tokens_total", f'{{class="{lost.kind}"}}', lost.n)

    def count_error(self, error: Exception) -> None:
        if isinstance(error, DeadlineError):
            self.count_refusal("infeasible")
        else:
            self.count("errors_total", f'{{kind="{type(error).__name__}"}}')

    def to_text(self, gauges: dict[str, float]) -> str:
        """All counters, and `gauges` of this moment."""
        with self._lock:
            counts = sorted(self._counts.items())
        lines, before = [], ""
        for (name, labels), amount in counts:
            if name != before:
                lines += [f"# HELP edge_{name} {_HELP[name]}", f"# TYPE edge_{name} counter"]
                before = name
            lines.append(f"edge_{name}{labels} {amount:g}")
        for name, value in gauges.items():
            lines += [f"# TYPE edge_{name} gauge", f"edge_{name} {value:g}"]
        return "\n".join(lines) + "\n"
