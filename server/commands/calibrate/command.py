"""The command: from the configuration and the questions to the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from alignment.errors import ConfigError
from fusion.assembly.checkpoints import open_checkpoint
from fusion.assembly.learned import fingerprints
from fusion.calibrate.asking import Form
from fusion.learned.weights import Fingerprint
from server.commands.calibrate import report
from server.commands.calibrate.answers import Answers, about
from server.commands.calibrate.learning import FILE, Learner
from server.commands.calibrate.run import Calibration, require_questions, variants
from server.commands.calibrate.shares import shares
from server.commands.evaluate.questions import Question
from server.commands.tables import progress, say
from server.loading import build
from server.settings import EnsembleSettings, Settings

ALIGNMENTS = ("spelled", "exact")


def calibrate(
    settings: Settings,
    name: str | None,
    questions: Sequence[Question],
    form: Form,
    console: Console,
    *,
    out: Path,
    seconds: float,
    development: float,
    seed: int,
    alignments: Sequence[str],
    likelihood: bool,
    learn: bool,
) -> None:
    """Measure, print tables and sentences, and write the report into `out`.

    Raises:
        ConfigError: there is no such ensemble or nothing to fuse in it, too few questions, or a folder that cannot
            be used.
    """
    chosen = _ensemble(settings, name, learn=learn)
    own = settings.ensembles[chosen]
    if likelihood and (learn or own.guidance is not None) and any(question.texts for question in questions):
        what = "--learn-weights" if learn else "guidance"
        raise ConfigError(
            f"{what} changes what follows a prompt, and choices by likelihood are read as a part of it: leave out "
            f"--likelihood or --lm-eval{', or --learn-weights' if learn else ''}."
        )
    require_questions(questions)
    first, second = shares(questions, development, seed)
    if not first or not second:
        raise ConfigError(
            "No task has two questions, so none can be divided into some to choose on and some to judge by: "
            "give at least 40 of the kind that will be asked."
        )
    known = known_members(own, settings)
    models = {model: settings.models[model].model_dump(mode="json") for model in map(own.model_of, own.members)}
    members = {name: asdict(one) for name, one in known.items()}
    options = {"form": asdict(form), "likelihood": likelihood, "weights": _digest(own.weighting.file)}
    kept = Answers(out, about(members, models, own.model_dump(mode="json"), options))
    learner = Learner(known, out / FILE) if learn else None
    runtime = build(variants(settings, chosen, alignments, learn=learn))
    with progress(Console(stderr=True)) as bars:
        calibration = Calibration(
            runtime,
            own,
            (first, second),
            form,
            kept,
            alignments=alignments,
            seconds=seconds,
            likelihood=likelihood,
            progress=bars,
            learner=learner,
        )
        runtime.fuser.start()
        try:
            outcome = calibration.run()
            outcome.failures = kept.failures()
        finally:
            runtime.fuser.stop()
    spoken = report.sentences(outcome, len(second))
    candidate = outcome.candidate
    pasted = None if candidate is None else report.yaml_of(chosen, candidate, own, out / FILE)
    report.print_outcome(console, outcome, spoken, pasted)
    image = report.picture(outcome)
    report.write_report(out, outcome, spoken, pasted, image)
    picture = "" if image is not None else " (without a picture: matplotlib is not installed)"
    say(console, f"wrote {out / report.PAGE}{picture}")


def _digest(file: str | None) -> str | None:
    """Of the configured learned weights; a file that cannot be read is refused where the ensemble is built."""
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def known_members(own: EnsembleSettings, settings: Settings) -> dict[str, Fingerprint]:
    """The members of an ensemble as learned weights know them."""
    models = {own.model_of(member) for member in own.members}
    return fingerprints(own, {name: open_checkpoint(name, settings.models[name]) for name in models})


def _ensemble(settings: Settings, name: str | None, *, learn: bool) -> str:
    if name is not None and name not in settings.ensembles:
        raise ConfigError(f"There is no ensemble {name!r}; choose from {', '.join(settings.ensembles)}.")
    several = [one for one, own in settings.ensembles.items() if len(own.members) > 1 or own.guidance is not None]
    found = name or next(iter(several), None)
    if found is None or found not in several:
        raise ConfigError("There is nothing to fuse: give the configuration an ensemble of two members or more.")
    if learn and settings.ensembles[found].fusion.sums:
        raise ConfigError(
            f"{found} adds up log-probabilities, and learned weights are for mixtures and products: leave out "
            "--learn-weights, or give another --ensemble."
        )
    return found
