"""Answer within a time limit: predict the time, shorten the prompt, end the answer."""
