"""`edge race`: which engine wins on this machine, for which prompts.

Every engine runs in a process of its own, so that its memory is its own; one at a time, in turns,
in alternating order, so that heat and drift fall on all alike.
"""
