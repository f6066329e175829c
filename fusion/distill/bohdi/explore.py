"""Explore: a batch of questions, from the draw of their domains to the verdicts on their answers.

Bohdi's sprout and harvest (new domains, proposed by those that ask) and meditation (a question, answers, a judge).
A batch is a function of state, settings and its own random numbers; it changes nothing and returns events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from fusion.distill.bohdi import rules, wording
from fusion.distill.bohdi.journal import Event
from fusion.distill.bohdi.judging import Case, Verdict, judge
from fusion.distill.bohdi.settings import JUDGES, TARGET, Bohdi
from fusion.distill.bohdi.state import State
from fusion.distill.bohdi.tree import Domain, KnowledgeTree
from fusion.distill.bohdi.voices import Reply, Request, Voices
from fusion.options import SamplingParams

NAME_TOKENS = 64
NO_DOMAIN = "no new domain"


@dataclass(frozen=True)
class Asked:
    """A question, and the leader that wrote it for a domain; `id` is that of its event."""

    id: str
    path: Domain
    leader: str
    text: str


def explore(
    round: int, count: int, state: State, settings: Bohdi, voices: Voices, excluded: frozenset[str]
) -> list[Event]:
    """Draw `count` domains and see what their questions come to. The state is left as it is.

    Args:
        round: from 1.
        count: of questions.
        state: before the batch.
        settings: of the run.
        voices: by name, target, sources and leaders.
        excluded: questions that are never asked, in the form of `rules.same`.

    Returns:
        What happened, for the journal: domains that joined the tree, samples, what was dropped, and the batch.
    """
    number, before = state.batches[round], voices.tokens
    rng = np.random.default_rng([settings.explore.seed, round, number])
    grown, paths = _draw(count, state.tree, settings, voices, rng)
    leaders = [str(rng.choice(list(settings.asking))) for _ in paths]
    drawn, lost = [], []
    for place, (path, leader) in enumerate(zip(paths, leaders, strict=True)):
        asked = Asked(f"{round}-{number}-{place}", path or (), leader, "")
        if path is None:
            lost.append((asked, NO_DOMAIN))
        else:
            drawn.append(asked)
    written = voices.ask([_question_request(one, settings, rng) for one in drawn])
    questions, unused = _usable_questions(drawn, written, state.asked, excluded, settings)
    answered = _answers(questions, settings, voices, rng)
    cases, unanswered = _cases(questions, answered, settings)
    verdicts = judge([case for _, case, _ in cases], settings.judge.by, settings.prompts, voices, rng)
    samples = [
        _sample(question, case, verdict, unusable, settings)
        for (question, case, unusable), verdict in zip(cases, verdicts, strict=True)
    ]
    dropped = [_about("dropped", question) | {"why": why} for question, why in [*lost, *unused, *unanswered]]
    end = {
        "event": "batch",
        "number": number,
        "drawn": count,
        "usable": sum(verdict.answer is not None for verdict in verdicts),
        "silent": _silent(zip((one.leader for one in drawn), written, strict=True), answered),
        "tokens": voices.tokens - before,
    }
    return [{"round": round, **event} for event in [*grown, *samples, *dropped, end]]


def evenly(tree: KnowledgeTree, rng: np.random.Generator) -> Domain | None:
    """A leaf, with the same probability for every child at each level; None where no leaf is there."""
    here: Domain = ()
    above = {leaf[:depth] for leaf in tree.leaves for depth in range(1, tree.levels + 1)}
    while len(here) < tree.levels:
        children = [path for path in tree.children(here) if path in above]
        if not children:
            return None
        here = children[int(rng.integers(len(children)))]
    return here


def _draw(
    count: int, tree: KnowledgeTree, settings: Bohdi, voices: Voices, rng: np.random.Generator
) -> tuple[list[Event], list[Domain | None]]:
    """Domains to ask about, None for a descent that found none, and what was proposed on the way."""
    tree = deepcopy(tree)
    if settings.explore.draws == "fixed":
        return [], [evenly(tree, rng) for _ in range(count)]
    events: list[Event] = []
    proposed: dict[Domain, Counter[str]] = {}

    def propose(parent: Domain) -> str | None:
        event: Event = {"event": "grown", "parent": list(parent)}
        if parent not in proposed:
            proposed[parent] = _proposals(parent, settings, voices, rng)
            event["proposed"] = dict(proposed[parent])
        there = {path[-1].casefold() for path in tree.children(parent)}
        enough = {name: n for name, n in proposed[parent].items() if n >= settings.explore.agree}
        new = Counter({name: n for name, n in enough.items() if name.casefold() not in there})
        name = new.most_common(1)[0][0] if new else None
        events.append(event | {"name": name})
        return name

    return events, [tree.draw(rng, propose) for _ in range(count)]


def _proposals(parent: Domain, settings: Bohdi, voices: Voices, rng: np.random.Generator) -> Counter[str]:
    """Names for a domain below `parent`, by how often they were proposed by all who ask."""
    prompt = wording.naming(settings.prompts, parent)
    requests = [
        Request(name, prompt, _sampling(settings, NAME_TOKENS, settings.explore.temperature, rng), wording.NAME)
        for name in settings.asking
        for _ in range(settings.explore.proposals)
    ]
    names = [wording.name_of(reply.text) for reply in voices.ask(requests) if reply.finished]
    return Counter(name for name in names if name is not None)


def _question_request(asked: Asked, settings: Bohdi, rng: np.random.Generator) -> Request:
    sampling = _sampling(settings, settings.explore.max_question, settings.explore.temperature, rng)
    return Request(asked.leader, wording.asking(settings.prompts, asked.path), sampling, wording.QUESTION)


def _usable_questions(
    drawn: Sequence[Asked],
    written: Sequence[Reply],
    asked: Collection[str],
    excluded: frozenset[str],
    settings: Bohdi,
) -> tuple[list[Asked], list[tuple[Asked, str]]]:
    """The questions that are asked, and the others with the reason why not."""
    forms = set(asked)
    questions, unused = [], []
    for one, reply in zip(drawn, written, strict=True):
        text, why = _question(reply, settings, forms, excluded)
        question = replace(one, text=text)
        if why is None:
            forms.add(rules.same(text))
            questions.append(question)
        else:
            unused.append((question, why))
    return questions, unused


def _question(
    reply: Reply, settings: Bohdi, asked: Collection[str], excluded: frozenset[str]
) -> tuple[str, str | None]:
    """A question's text, and why it is not used."""
    if reply.error is not None:
        return "", f"no question: {reply.error}"
    text = wording.field_of(reply.text, "question")
    if not isinstance(text, str):
        return reply.text, rules.CUT_OFF if not reply.finished else "not the JSON that was asked for"
    why = rules.fault(text, finished=reply.finished, rules=settings.rules)
    return text, why or rules.known(text, asked, excluded)


def _answers(
    questions: Sequence[Asked], settings: Bohdi, voices: Voices, rng: np.random.Generator
) -> list[dict[str, Reply]]:
    """By question, the replies of target and sources by name. All are generated at the same time."""
    names, explore = [TARGET, *settings.sources], settings.explore
    requests = [
        Request(name, one.text, _sampling(settings, explore.max_answer, explore.answer_temperature, rng))
        for one in questions
        for name in names
    ]
    replies = iter(voices.ask(requests))
    return [{name: next(replies) for name in names} for _ in questions]


def _cases(
    questions: Sequence[Asked], answered: Sequence[dict[str, Reply]], settings: Bohdi
) -> tuple[list[tuple[Asked, Case, dict[str, str]]], list[tuple[Asked, str]]]:
    """What is judged, with the answers that are not used and why; and questions without a usable answer.

    A failure says nothing about who answers better, unlike an answer that is no good: it completes no case.
    """
    cases, unanswered = [], []
    for question, replies in zip(questions, answered, strict=True):
        faults = {name: why for name, reply in replies.items() if (why := _answer_fault(reply, settings))}
        answers = {name: reply.text for name, reply in replies.items() if name not in faults}
        failed = {name for name, reply in replies.items() if reply.error is not None}
        complete = TARGET not in failed and not failed >= settings.sources.keys()
        if answers or not complete:
            judge = JUDGES if settings.judge.by == "ensemble" else settings.judge.source or question.leader
            cases.append((question, Case(question.text, answers, judge, complete), faults))
        else:
            unanswered.append((question, f"no usable answer: {next(iter(faults.values()))}"))
    return cases, unanswered


def _answer_fault(reply: Reply, settings: Bohdi) -> str | None:
    if reply.error is not None:
        return reply.error
    return rules.fault(reply.text, finished=reply.finished, rules=settings.rules)


def _silent(written: Iterable[tuple[str, Reply]], answered: Sequence[dict[str, Reply]]) -> dict[str, str]:
    """The models all of whose requests failed, and why the last one did."""
    errors: dict[str, list[str | None]] = {}
    for name, reply in [*written, *(pair for replies in answered for pair in replies.items())]:
        errors.setdefault(name, []).append(reply.error)
    return {name: found[-1] for name, found in errors.items() if found[-1] is not None and all(found)}


def _sampling(settings: Bohdi, longest: int, temperature: float, rng: np.random.Generator) -> SamplingParams:
    seed = int(rng.integers(2**63))
    return SamplingParams(max_tokens=longest, temperature=temperature, top_p=settings.explore.top_p, seed=seed)


def _about(event: str, question: Asked) -> Event:
    return {
        "event": event,
        "id": question.id,
        "path": list(question.path),
        "leader": question.leader,
        "question": question.text,
    }


def _sample(question: Asked, case: Case, verdict: Verdict, unusable: dict[str, str], settings: Bohdi) -> Event:
    return _about("sample", question) | {
        "answers": dict(case.answers),
        "unusable": unusable,
        "judge": settings.judge.by if settings.judge.by == "fused" else case.judge,
        "shown": list(verdict.shown),
        "scores": list(verdict.scores),
        "winners": list(verdict.winners),
        "answer": verdict.answer,
        "reward": verdict.reward,
    }
