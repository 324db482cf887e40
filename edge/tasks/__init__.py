"""Built-in tasks as named presets, and generated requests for measuring.

`task` reads a preset, `catalog` finds one by its name, `use` fills it in for one conversation,
`requests` makes requests of realistic lengths for measuring.
"""

from boardfit.edge.tasks.catalog import find_task, load_tasks
from boardfit.edge.tasks.task import Length, Task

__all__ = ["Length", "Task", "find_task", "load_tasks"]
