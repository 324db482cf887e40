"""Answer within a time limit: predict the time, shorten the prompt, end the answer.

`time_model` predicts seconds and learns from every request; `shape` chooses the version of a
conversation that fits, with sentences picked by `shorten`; `soft_end` ends on a sentence. The
pieces are pure: `admission`, `pacer` and `timing` put them around an engine. A session has all of
it as a `deadline.Deadline`, or does without.
"""
