"""What a checkpoint can become: one folder per format, behind one protocol.

base.py       the protocol `Format`, a row of the table, sizes, artifacts
table.py      the formats as data: class, engine, file, default recipe
converted.py  what formats share that a converter in an environment of its own makes
measured.toml recipe × size × divergence × speed, as measured; read by measured.py
tools/        the environments of the converters; network/ is for vision and speech
"""
