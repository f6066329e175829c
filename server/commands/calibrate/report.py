"""The report of a calibration: tables for the terminal, HTML with a picture, and the YAML to paste."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from fusion.calibrate.candidates import AS_CONFIGURED, STRENGTHS, UNIFORM, Candidate
from fusion.calibrate.verdict import Result
from fusion.figures import new_figure, png
from server.commands.calibrate import learned
from server.commands.calibrate.run import Outcome, write
from server.commands.tables import right, say, table
from server.settings import EnsembleSettings
from server.settings.sums import NAMES as SUMS

PICTURE, PAGE, NUMBERS, CONFIGURATION = "curve.png", "report.html", "report.json", "ensemble.yaml"
SEARCH = ("candidate", "questions", "points", "passes/question")
SHOWN = 8  # candidates of the search in a table
SHOWN_FAILURES = 4

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;"
    "text-align:left}pre{background:#f4f4f4;padding:1rem;overflow:auto}img{max-width:100%}"
)


def results_of(outcome: Outcome) -> list[Result]:
    """Everything that answered the untouched questions."""
    found = [*outcome.members, outcome.voting, outcome.chosen, *outcome.compared, outcome.oracle]
    return [one for one in found if one is not None]


def sentences(outcome: Outcome, untouched: int) -> list[str]:
    """The verdict, what qualifies it, and warnings."""
    found = []
    if outcome.verdict is not None:
        found.append(outcome.verdict.sentence)
    elif outcome.standings:
        first = outcome.standings[0]
        found.append(
            f"The time allowed was over before the untouched questions could be asked. Ahead so far, on "
            f"{len(first.scores)} development questions: {first.candidate.name} ({100 * first.mean:.1f})."
        )
    elif outcome.members:
        found.append(
            "The time allowed was too short to compare any ensemble; the members alone are below. Run the command "
            "again to go on, or allow more --seconds."
        )
    else:
        found.append(
            "The time allowed was too short for one comparison; the answers so far are kept. Run the command "
            "again to go on, or allow more --seconds."
        )
    found += behind(outcome)
    found += unanswered(outcome)
    if outcome.members and not any(any(result.scores) for result in results_of(outcome)):
        found.append("No answer scored above 0: the questions are beyond all members, or compared the wrong way.")
    if outcome.members and untouched < 40:
        found.append(f"{untouched} untouched questions are few: differences below some 10 points are noise.")
    if outcome.learned is not None:
        found += outcome.learned.sentences(untouched)
    if outcome.members:
        found.append(f"The members answer {100 * outcome.disagreement:.0f} % of the questions differently.")
    return [*found, *outcome.warnings]


def behind(outcome: Outcome) -> list[str]:
    """A sentence for each task in which a member is more than a point better than what was chosen."""
    if outcome.chosen is None:
        return []
    found = []
    for task, points in outcome.tasks[outcome.chosen.name].items():
        alone = {member.name: outcome.tasks[member.name][task] for member in outcome.members}
        best = max(alone, key=lambda name: alone[name])
        if alone[best] > points + 1:
            found.append(f"In {task} {best} is {alone[best] - points:.1f} points better than what was chosen.")
    return found


def unanswered(outcome: Outcome) -> list[str]:
    """A sentence for each way to answer that failed on some questions, the worst first."""
    worst = sorted(outcome.failures.items(), key=lambda one: -one[1].total())
    found = []
    for name, reasons in worst[:SHOWN_FAILURES]:
        reason, _ = reasons.most_common(1)[0]
        found.append(
            f"{reasons.total()} questions got no answer from {name}, which counts as a wrong one: {reason}"
        )
    if len(worst) > SHOWN_FAILURES:
        found.append(f"Neither did some from {len(worst) - SHOWN_FAILURES} other candidates.")
    return found


def print_outcome(console: Console, outcome: Outcome, spoken: Sequence[str], pasted: str | None) -> None:
    """Print the tables, the sentences and the YAML to paste."""
    if outcome.learned is not None:
        console.print(learned.weights_table(outcome.learned))
        console.print()
    if outcome.members:
        console.print(results_table(outcome))
        console.print()
    if outcome.standings:
        console.print(standings_table(outcome))
        console.print()
    for sentence in spoken:
        say(console, sentence)
    if pasted is not None:
        say(console, f"\n{pasted}")


def results_table(outcome: Outcome) -> Table:
    """A row per way to answer, on the untouched questions."""
    heading, rows = _results(outcome)
    title = "Untouched questions: points of 100 with 95% intervals"
    result = table(title, heading[0], *map(right, map(plain, heading[1:])))
    for row in rows:
        result.add_row(*map(plain, row))
    return result


def standings_table(outcome: Outcome) -> Table:
    """The best candidates of the search."""
    result = table("Search, on the development share", SEARCH[0], *map(right, SEARCH[1:]))
    for row in _search(outcome)[:SHOWN]:
        result.add_row(*map(plain, row))
    return result


def yaml_of(name: str, candidate: Candidate, settings: EnsembleSettings, learned: Path) -> str:
    """The ensemble as a configuration file has it; `learned` is the file of learned weights."""
    own = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if candidate.weights == AS_CONFIGURED:
        if candidate.strength is not None:
            for part, (option, _) in STRENGTHS.items():
                own.get(part, {})[option] = candidate.strength
    else:
        weighting = own.pop("weighting", {})
        if candidate.weights == UNIFORM:
            weighting = {}
        for changed in ("maps", "views", "confidence", *SUMS):
            own.pop(changed, None)
        own |= {
            "members": list(candidate.members),
            "pivot": candidate.pivot,
            "alignment": candidate.alignment,
            "combine": candidate.combine,
            "weights": candidate.weights,
        }
        own |= {"confidence": candidate.confidence} if candidate.confidence else {}
        if candidate.draft(own.get("draft")) is None:
            own.pop("draft", None)
        views = {one: settings.views[one] for one in candidate.members if one in settings.views}
        own |= {"views": {n: v.model_dump(exclude_unset=True) for n, v in views.items()}} if views else {}
        for changed in ("method", "offsets", "file"):
            weighting.pop(changed, None)
        weighting["prune"] = candidate.prune
        if candidate.weights == "learned":
            weighting["file"] = str(learned.absolute())
        own |= {"weighting": weighting} if weighting != {"prune": 0.0} else {}
    return str(yaml.safe_dump({"ensembles": {name: own}}, sort_keys=False, allow_unicode=True))


def picture(outcome: Outcome) -> bytes | None:
    """Cost over quality as PNG; None where matplotlib is not installed or nothing was measured."""
    results, figure = results_of(outcome), new_figure(7, 4)
    if not results or figure is None:
        return None
    axes = figure.add_subplot()
    for result in results:
        points = result.points
        error = [[points.mean - points.low], [points.high - points.mean]]
        axes.errorbar(
            [result.passes_per_question], [points.mean], yerr=error, fmt="o", capsize=3, label=result.name
        )
    axes.set(xlabel="member passes per question", ylabel="points of 100", title="Cost and quality")
    axes.legend(fontsize=7)
    return png(figure)


def write_report(
    folder: Path, outcome: Outcome, spoken: Sequence[str], pasted: str | None, image: bytes | None
) -> None:
    """Write the page, the picture, the numbers and the YAML into a folder that is there."""
    parts = ["<!doctype html><meta charset=utf-8><title>Calibration</title>", f"<style>{_STYLE}</style>"]
    parts.append("<h1>Calibration</h1>" + "".join(f"<p>{escape(sentence)}</p>" for sentence in spoken))
    parts.append(_html_table(*_results(outcome)))
    if image is not None:
        parts.append(_image("cost and quality", image))
        write(folder / PICTURE, image)
    if outcome.learned is not None:
        parts.append("<h2>Learned weights by task</h2>")
        parts.append(_html_table(learned.heading(outcome.learned), learned.rows(outcome.learned)))
        bars = learned.picture(outcome.learned)
        if bars is not None:
            parts.append(_image("learned weights", bars))
            write(folder / learned.PICTURE, bars)
    parts.append("<h2>Search</h2>" + _html_table(SEARCH, _search(outcome)))
    if pasted is not None:
        parts.append(f"<h2>Configuration</h2><pre>{escape(pasted)}</pre>")
        write(folder / CONFIGURATION, pasted)
    write(folder / PAGE, "\n".join(parts) + "\n")
    write(folder / NUMBERS, json.dumps(_numbers(outcome, spoken), ensure_ascii=False, indent=1) + "\n")


def _results(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """The columns of what answered the untouched questions, and a row for each."""
    tasks = list(dict.fromkeys(task for by_task in outcome.tasks.values() for task in by_task))
    rows = []
    for result in results_of(outcome):
        points = result.points
        by_task = outcome.tasks.get(result.name, {})
        cells = [f"{by_task[task]:.1f}" if task in by_task else "" for task in tasks]
        interval = f"{points.mean:.1f} ({points.low:.1f} to {points.high:.1f})"
        cost = (f"{result.milliseconds_per_token:.1f}", f"{result.passes_per_question:.1f}")
        rows.append([result.name, interval, *cost, *cells])
    return ["", "points", "ms/token", "passes/question", *tasks], rows


def _search(outcome: Outcome) -> list[list[str]]:
    """A row for each candidate of the search, as `SEARCH` names its cells."""
    return [
        [one.candidate.name, str(len(one.scores)), f"{100 * one.mean:.1f}", f"{one.cost:.1f}"]
        for one in outcome.standings
    ]


def _html_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"


def _image(alternative: str, png: bytes) -> str:
    return f'<img alt="{alternative}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _numbers(outcome: Outcome, spoken: Sequence[str]) -> dict[str, Any]:
    return {
        "pays": outcome.verdict.pays if outcome.verdict else None,
        "sentences": list(spoken),
        "gain": asdict(outcome.verdict.gain) if outcome.verdict else None,
        "chosen": asdict(outcome.candidate) if outcome.candidate else None,
        "disagreement": outcome.disagreement,
        "learned": outcome.learned.numbers() if outcome.learned else None,
        "untouched": [
            {
                "name": result.name,
                "points": asdict(result.points),
                "tokens": result.tokens,
                "passes": result.passes,
                "seconds": result.seconds,
                "tasks": outcome.tasks.get(result.name, {}),
            }
            for result in results_of(outcome)
        ],
        "search": [
            {"candidate": asdict(one.candidate), "questions": len(one.scores), "points": 100 * one.mean}
            for one in outcome.standings
        ],
    }
