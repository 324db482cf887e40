"""Answer within a time limit: predict the time, shorten the prompt, end the answer.

`time_model` predicts seconds and learns from every request; `shape` chooses the version of a
conversation that fits, with sentences picked by `shorten`; `soft_end` ends on a sentence. The
pieces are pure: `boardfit.edge.chat.timed_session` puts them around an engine.
"""

from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.outcome import Adjustment, Outcome
from boardfit.edge.deadline.time_model import Prior, Span, TimeModel

__all__ = ["Adjustment", "Budget", "Outcome", "Prior", "Span", "TimeModel"]
