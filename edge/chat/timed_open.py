"""Open a session on a model, with a deadline if there is a budget to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boardfit.edge.chat.session import Session
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.target import OpenModel
from boardfit.edge.states import model_identity, open_store

if TYPE_CHECKING:
    from boardfit.edge.deadline.budget import Budget
    from boardfit.edge.tasks.task import Task

#: Tokens guessed ahead with a budget, where answers are greedy (boardfit.edge.engines.lookup).
_N_DRAFT = 8


def draft_tokens(budget: Budget | None, task: Task | None = None) -> int:
    """Tokens to guess from the prompt: none without a budget, or where a task's answers are new."""
    return _N_DRAFT if budget is not None and (task is None or task.extractive) else 0


def open_session(
    opened: OpenModel, *, system: str | None = None, raw: bool = False, timed: bool = False
) -> Session:
    """Open a session that restores earlier states. If it is `timed`, it can keep budgets."""
    states = None if raw else open_store(opened)
    session = Session(opened.engine, system=system, states=states, raw=raw)
    if timed:
        add_deadline(session, opened)
    return session


def add_deadline(session: Session, opened: OpenModel) -> None:
    """Let a session keep budgets, with the smaller model of its bundle beside it."""
    from boardfit.edge.deadline.deadline import open_deadline

    model_id = model_identity(opened)
    session.deadline = open_deadline(opened.engine, model_id, opened.plan)
    found = opened.bundle.small if opened.bundle is not None else None
    if found is not None:
        model, plan = found
        settings = EngineSettings.to_use(plan)
        if opened.settings.thinking == "off":
            settings = settings.replace(thinking="off")
        engine = open_engine(plan.engine, model, settings)
        deadline = open_deadline(engine, f"{model_id} small", plan)
        session.small = Session(engine, deadline=deadline)
    session.check_template()  # loads the template engine, outside of any budget
