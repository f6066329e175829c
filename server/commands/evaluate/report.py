"""Scores per served name, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from alignment.errors import ConfigError
from fusion.calibrate.intervals import Estimate, bootstrap
from server.commands.evaluate.asking import Answer
from server.commands.tables import right, table


@dataclass(frozen=True, slots=True)
class Scores:
    """Exact match, 0 to 1, and the mean chrF of the text answers among them, 0 to 100."""

    questions: int
    exact: Estimate
    chrf: Estimate | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The scores of one served name, per task and over all; `failed` counts questions that got no answer."""

    model: str
    tasks: dict[str, Scores]
    total: Scores
    failed: int


def summarise(answers: Sequence[Answer]) -> list[Summary]:
    """One summary per served name, in the order in which they were asked."""
    summaries = []
    for model in dict.fromkeys(answer.model for answer in answers):
        own = [answer for answer in answers if answer.model == model]
        tasks = {
            task: _score([answer for answer in own if answer.question.task == task])
            for task in dict.fromkeys(answer.question.task for answer in own)
        }
        failed = sum(answer.error is not None for answer in own)
        summaries.append(Summary(model, tasks, _score(own), failed))
    return summaries


def scores_table(summaries: Sequence[Summary]) -> Table:
    """One row per name: exact match in % over chrF for each task, and both over all tasks with their intervals."""
    first = summaries[0]
    heads = [f"{escape(task.replace('_', ' '))}\n[dim]{one.questions}[/]" for task, one in first.tasks.items()]
    heads += [f"all\n[dim]{first.total.questions}[/]", "all chrF"]
    title = "Exact match in %, chrF below; over all with 95% intervals"
    result = table(title, Column("model", no_wrap=True), *map(right, heads))
    best = {task: max(one.tasks[task].exact.mean for one in summaries) for task in first.tasks}
    best_total = max(one.total.exact.mean for one in summaries)
    for one in summaries:
        cells = [_task(scores, scores.exact.mean == best[task]) for task, scores in one.tasks.items()]
        cells.append(_interval(one.total.exact, 100, one.total.exact.mean == best_total))
        cells.append(_interval(one.total.chrf, 1, False) if one.total.chrf else "")
        failed = f"\n[red]{one.failed} failed[/]" if one.failed else ""
        result.add_row(escape(one.model) + failed, *cells)
    return result


def hints(summaries: Sequence[Summary], answers: Sequence[Answer]) -> list[str]:
    """Advice per task where nothing is exactly right although the answers are like the references."""
    found = []
    for task, scores in summaries[0].tasks.items():
        ways = {answer.question.matching for answer in answers if answer.question.task == task}
        each = [one.tasks[task] for one in summaries]
        alike = max((one.chrf.mean for one in each if one.chrf is not None), default=0.0)
        if ways == {"exact"} and scores.chrf is not None and alike > 0 and not any(one.exact.mean for one in each):
            found.append(
                f"{task}: no answer is exactly a reference, though chrF is up to {alike:.1f}. If it need only "
                'hold a reference, say --match contains, or "match": "contains" in its lines.'
            )
    return found


def first_failures(answers: Sequence[Answer]) -> dict[str, str]:
    """By served name, the reason why the first of its unanswered questions got no answer."""
    return {answer.model: answer.error for answer in reversed(answers) if answer.error is not None}


def write_json(path: Path, answers: Sequence[Answer], summaries: Sequence[Summary]) -> None:
    """All answers with what they were compared with, and the scores."""
    content = {
        "summary": [asdict(summary) for summary in summaries],
        "answers": [asdict(answer) for answer in answers],
    }
    try:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from None


def _score(answers: Sequence[Answer]) -> Scores:
    texts = [answer.chrf for answer in answers if answer.chrf is not None]
    right = bootstrap([answer.right for answer in answers])
    return Scores(len(answers), right, bootstrap(texts) if texts else None)


def _task(scores: Scores, best: bool) -> str:
    text = _bold(f"{100 * scores.exact.mean:.1f}", best)
    return f"{text}\n[dim]{scores.chrf.mean:.1f}[/]" if scores.chrf else text


def _interval(estimate: Estimate, scale: float, best: bool) -> str:
    text = _bold(f"{scale * estimate.mean:.1f}", best)
    return f"{text}\n[dim]{scale * estimate.low:.1f}–{scale * estimate.high:.1f}[/]"


def _bold(text: str, bold: bool) -> str:
    return f"[bold]{text}[/]" if bold else text
