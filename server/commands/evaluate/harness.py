"""Harness: questions of the tasks of lm-evaluation-harness, from data that is on this machine."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, one_line
from server.commands.evaluate.questions import Metric, Question, unmatchable
from server.commands.evaluate.scoring import last_number
from server.settings.fields import Match

LETTERS = string.ascii_uppercase + string.ascii_lowercase


def harness_questions(
    names: Sequence[str], limit: int | None = None, match: Match | None = None, metric: Metric = "match"
) -> list[Question]:
    """The test questions of tasks by their names there, without examples; of each task only the first `limit`.

    A name is `arc_easy`, a tag of several tasks, or the path of a task's YAML file; the data are what the library
    `datasets` has in its cache. `arc_easy=FOLDER` reads them from a folder: a clone of the data set's repository,
    or files (JSON lines, Parquet, CSV) called after the splits, such as test.jsonl.

    Multiple choice is by likelihood, so its choices have letters that the prompts do not show. Answers are
    compared by `match` and scored by `metric`; without `match` by the last number where the task cuts one out.

    Raises:
        ConfigError: the package is missing, there is no such task or no data, or a task has questions of another
            form.
    """
    found: list[Question] = []
    for name in names:
        task_name, _, folder = name.partition("=")
        for task in _tasks(task_name, Path(folder) if folder else None):
            docs = list(task.eval_docs)
            if limit is not None:
                docs = docs[:limit]
            found += [_question(task, doc, number, match, metric) for number, doc in enumerate(docs)]
    return found


def _tasks(name: str, folder: Path | None) -> Iterable[Any]:
    """The tasks of a name, with their data."""
    try:
        from lm_eval import tasks
    except ImportError:
        raise ConfigError("--lm-eval needs the package lm-eval: install Tutti with its extra `harness`.") from None
    # Its index of all 14,000 files takes half a minute, so only folders that speak of the name are looked at.
    word = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
    files = Path(str(tasks.__file__)).parent.rglob("*.yaml")
    folders = {path.parent for path in files if word.search(path.read_text(encoding="utf-8", errors="replace"))}
    manager = tasks.TaskManager(include_path=sorted(folders), include_defaults=False)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lm-eval {name}: {folder} is no folder; give one that holds the data.")
    if name not in manager.task_index and not Path(name).is_file():
        raise ConfigError(f"There is no task {name!r} in lm-evaluation-harness: `lm-eval ls tasks` shows them.")
    asked: list[Any] = [name]
    if folder is not None:
        here = {"task": name, "dataset_path": str(folder.resolve())}
        flat = here | {"dataset_name": None}
        alone = flat | {"training_split": None, "fewshot_split": None}  # the test questions and no others
        asked = [
            {"group": "tutti", "task": [changed]}
            for changed in (here, flat, alone, alone | {"validation_split": None})
        ]
    reason = ""
    with _offline():
        for one in asked:
            try:
                return list(manager.load(one)["tasks"].values())
            except Exception as error:  # the libraries raise everything from KeyError to their own here
                reason = reason or one_line(error)
    raise ConfigError(
        f"The data of {name} cannot be read ({reason}): give --lm-eval {name}=FOLDER with a copy of them."
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the library of data sets to what is on this machine, and quiet."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.enable_progress_bars()


def _question(task: Any, doc: dict[str, Any], number: int, match: Match | None, metric: Metric) -> Question:
    name, kind = str(task.task_name), task.OUTPUT_TYPE
    prompt = task.fewshot_context(doc, 0)
    if not isinstance(prompt, str) or kind not in ("multiple_choice", "generate_until"):
        raise ConfigError(f"{name} has questions of another form ({kind}); give tasks of choices or of answers.")
    target = task.doc_to_target(doc)
    if kind == "multiple_choice":
        texts = tuple(choice.strip() for choice in task.doc_to_choice(doc))
        right = texts.index(target.strip()) if isinstance(target, str) else target
        if not isinstance(right, int) or not 0 <= right < len(texts) <= len(LETTERS):
            raise ConfigError(f"{name}, question {number}: {target!r} is not one of its choices.")
        letters = tuple(LETTERS[: len(texts)])
        return Question(str(number), name, prompt, (letters[right],), letters, None, texts)
    references = tuple(str(one) for one in ([target] if isinstance(target, str | int | float) else target))
    numbers = [last_number(one) for one in references]
    if match is None and _cuts_out(task) and all(one is not None for one in numbers):
        # The harness cuts a number out of answers like these, which end in it.
        return Question(str(number), name, prompt, tuple(map(str, numbers)), metric=metric)
    question = Question(str(number), name, prompt, references, match=match, metric=metric)
    if problem := unmatchable(question):
        raise ConfigError(f"{name}, question {number}: {problem}.")
    return question


def _cuts_out(task: Any) -> bool:
    """Return whether a task compares a part of an answer, which it finds by a regular expression."""
    steps = [step for chain in task.config.filter_list or () for step in chain.get("filter") or ()]
    return any(step.get("function") == "regex" for step in steps)
