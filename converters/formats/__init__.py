"""Formats besides GGUF: what a checkpoint can become, how it is planned, made and chosen.

table.py      the formats as data: engine, file, default recipe
weigh.py      exact-enough sizes of a recipe before anything is converted
plan.py       memory and speed of a format on a board
convert.py    one door to the converters in their own environments
choose.py     `auto`: by board, length of prompts and measured quality
measured.toml recipe × size × divergence × speed, as measured; drives `choose`
"""
