"""Built-in tasks as named presets, and generated requests for measuring."""

from boardfit.edge.tasks.task import Length, Task, find_task, load_tasks

__all__ = ["Length", "Task", "find_task", "load_tasks"]
