"""Processes: the one door for children, what a death means, what a running one publishes."""
