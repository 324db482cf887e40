"""How the embedded sample model was made: generator, task, training, scores.

Run the modules from the checkout:

    PYTHONPATH=scripts python -m lab.sample.train --out DIR       an hour of one core
    PYTHONPATH=scripts python -m lab.sample.evaluate --split dev  exact match with torch

`task` and `generator` are free of torch. The model itself lies in `converters/sample`.
"""
