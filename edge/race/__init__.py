"""`edge race`: find the engine that wins on this machine, for each prompt length.

Every engine runs in a process of its own, so that its memory is its own; one at a time, in turns,
in alternating order, so that heat and drift fall on all alike.
"""
