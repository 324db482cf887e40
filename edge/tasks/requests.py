"""Requests like those that people make of a task: original texts, seeded, counted in tokens.

for request in make_requests([find_task("translate")], 50, engine.count):
    print(request.message)
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from boardfit.edge.errors import UsageError
from boardfit.edge.tasks.material import Count, load_material
from boardfit.edge.tasks.task import Task, language_name, load_tasks
from boardfit.edge.units import did_you_mean, printable

SEED = 20261101
#: The name that stands for requests of every task in turn.
MIX = "mix"
# Languages that a translation is asked into: the most spoken ones, of many scripts.
_INTO = ("zh", "es", "de", "fr", "ja", "ar", "hi", "pt", "ru", "pl")
# What a task's requests are made of, by its name; a task of one's own gets sentences or a page.
_MATERIAL = {
    "assistant": "commands",
    "customer-service": "service",
    "manual-question": "manual",
    "translate": "sentences",
    "translate-paragraph": "sentences",
    "summarize": "article",
}
_PAGE_TOKENS = 400


@dataclass(frozen=True)
class TaskRequest:
    """One request. `n_prompt` tokens are what the user gives, without system prompt and template;
    `n_answer` is how long the answer is meant to become at most.
    """

    task: Task
    values: Mapping[str, str]
    n_prompt: int
    n_answer: int

    @property
    def message(self) -> str:
        return self.task.fill(self.values)


def find_workload(name: str) -> list[Task]:
    """The tasks of a workload: one, or all for `mix`. Raises UsageError for an unknown name."""
    tasks = load_tasks()
    if name == MIX:
        return list(tasks.values())
    if name in tasks:
        return [tasks[name]]
    known = (*tasks, MIX)
    raise UsageError(
        f"there is no workload {printable(name, 40)!r}.{did_you_mean(name, known)}",
        next_step=f"workloads: {', '.join(known)}",
    )


def make_requests(
    tasks: Sequence[Task], n_requests: int, count: Count, *, seed: int = SEED
) -> list[TaskRequest]:
    """`n_requests`, the tasks in turn, none twice; equal for equal seeds and tokenizers."""
    rng = random.Random(seed)
    found: list[TaskRequest] = []
    seen: set[str] = set()
    for i in range(n_requests):
        task = tasks[i % len(tasks)]
        for _ in range(20):  # short requests repeat now and then
            request = _request(task, rng, count)
            if request.message not in seen:
                break
        seen.add(request.message)
        found.append(request)
    return found


def _request(task: Task, rng: random.Random, count: Count) -> TaskRequest:
    n_tokens = task.prompt.draw(rng)
    n_answer = task.answer.draw(rng)
    plain = "article" if n_tokens >= _PAGE_TOKENS else "sentences"
    material = load_material(_MATERIAL.get(task.name, plain))
    files = [p.name for p in task.parameters.values() if p.kind == "file"]
    values = {
        p.name: language_name(rng.choice(_INTO))
        for p in task.parameters.values()
        if p.kind == "language"
    }
    if files:
        page = load_material("manual").compose(rng, n_tokens, count)
        values["text"] = rng.choice(page.questions or ("What is this about?",))
        values |= {name: page.text for name in files}
    else:
        values["text"] = material.compose(rng, n_tokens, count).text
    given = count(values["text"]) + sum(count(values[name]) for name in files)
    return TaskRequest(task, values, given, n_answer)
