"""The four tasks of the demo, each a seeded stream of examples with a held-out part."""

from deploy.demo.tasks import arithmetic, commonsense, data_to_text, translation
from deploy.demo.tasks.example import Example, Split, Task, stream

TASKS: dict[str, Task] = {
    "arithmetic": arithmetic.draw,
    "data_to_text": data_to_text.draw,
    "translation": translation.draw,
    "commonsense": commonsense.draw,
}

__all__ = ["TASKS", "Example", "Split", "Task", "stream"]
