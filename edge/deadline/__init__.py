"""Answer within a time limit: predict the time, shorten the prompt, end the answer.

`time_model`, `shape`, `shorten` and `soft_end` are pure. `admission`, `pacer` and `timing` put them
around an engine. A session has all of it as a `deadline.Deadline`, or does without.
"""
