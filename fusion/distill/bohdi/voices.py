"""Voices: target, sources and leaders as running models, asked many things at a time through Tutti's engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from alignment.methods.map_cache import MapCache
from alignment.methods.origin import PAPERS
from fusion.assembly.runtime import Runtime, build
from fusion.core import OnMemberFailure
from fusion.distill.bohdi.settings import JUDGES
from fusion.distill.training.settings import Source
from fusion.ensemble import Ensemble
from fusion.loop.listener import Listener, Submission, ask_all
from fusion.options import EngineOptions, FusionParams, SamplingParams
from fusion.sequence.constraint import Constraint
from fusion.sequence.grammar import json_schema

MOST_WAITING = 2**16


@dataclass(frozen=True, slots=True)
class Request:
    """A question to one model.

    Attributes:
        model: its name, or `JUDGES`.
        prompt: of the user.
        sampling: how the answer is drawn.
        schema: of the JSON object that the answer is to be; None for free text.
    """

    model: str
    prompt: str
    sampling: SamplingParams
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its text, whether it came to its end, and why there is none."""

    text: str = ""
    finished: bool = False
    error: str | None = None


@dataclass
class Panel:
    """The ensemble that judges, as `fusion.assembly` builds it; `method` aligns the members' vocabularies."""

    members: Sequence[str]
    pivot: str
    method: str
    on_member_failure: OnMemberFailure = "fail"
    fusion: FusionParams = field(default_factory=FusionParams)
    views: Mapping[str, Any] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)

    @property
    def alignment(self) -> Any:
        """The method with the paper's parameters."""
        return SimpleNamespace(method=self.method, parameters=PAPERS)

    @property
    def pivots(self) -> tuple[str, ...]:
        """The pivot alone."""
        return (self.pivot,)

    def model_of(self, member: str) -> str:
        """Return the member: none of them is a view."""
        return member


@dataclass(slots=True)
class Voices:
    """Running models by name, and what they have done.

    Attributes:
        runtime: what runs them.
        tokens: generated so far.
    """

    runtime: Runtime
    tokens: int = 0
    _grammars: dict[tuple[str, str], Constraint] = field(default_factory=dict)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Ask everything at the same time; the replies in the order of the requests.

        A request that cannot be taken, or whose model is lost, has a reply with an error: the others go on.
        """

        def started(request: Request) -> Submission:
            ensemble = self.runtime.ensembles[request.model]
            prompt = ensemble.encode_chat([{"role": "user", "content": request.prompt}])
            if request.schema is not None:
                constraints = {ensemble.pivot: self._constraint(ensemble, request.schema)}
                prompt = replace(prompt, constraints=constraints)
            room = ensemble.max_new_tokens(prompt, ensemble.taking_part(ensemble.defaults))
            sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, room))
            return ensemble, prompt, sampling, ensemble.defaults

        ended = ask_all(self.runtime.fuser, started, requests)
        self.tokens += sum(one.tokens for one in ended)
        return [
            Reply(one.text.strip(), one.end is not None and one.end.finish == "stop", one.error) for one in ended
        ]

    def log_probabilities(self, exchanges: Sequence[tuple[str, str]]) -> list[float | None]:
        """The ensemble's log-probability, in nats, of each answer with its end: (prompt, answer) each.

        None where the ensemble cannot read the two.
        """
        ensemble = self.runtime.ensembles[JUDGES]
        starts: list[int | None] = [None] * len(exchanges)

        def started(number: int) -> Submission:
            question, answer = exchanges[number]
            asked = [{"role": "user", "content": question}]
            said = [*asked, {"role": "assistant", "content": answer}]
            prompt = ensemble.encode_chat(said, add_generation_prompt=False, locate=True)
            begin = ensemble.tokenizer.encode_chat(asked, add_generation_prompt=True)
            ids = prompt.ids[ensemble.pivot]
            if ids[: len(begin)] == begin:
                starts[number] = len(begin)
            return ensemble, prompt, SamplingParams(max_tokens=1, prompt_logprobs=0), ensemble.defaults

        ended = ask_all(self.runtime.fuser, started, range(len(exchanges)))
        return [_answer_sum(one, start, ensemble.stop_ids) for one, start in zip(ended, starts, strict=True)]

    def _constraint(self, ensemble: Ensemble, schema: Mapping[str, Any]) -> Constraint:
        key = (ensemble.name, repr(schema))
        if key not in self._grammars:
            grammar = json_schema(dict(schema), param="the schema")
            self._grammars[key] = Constraint(ensemble.first.grammar_table, grammar=grammar)
        return self._grammars[key]


@contextmanager
def open_voices(sources: Mapping[str, Source], panel: Panel | None) -> Iterator[Voices]:
    """The models, each under its name, and the panel as `JUDGES`; shut down at the end.

    Raises:
        ConfigError: what keeps one of them from running.
    """
    models = {name: _model(source) for name, source in sources.items()}
    ensembles = {} if panel is None else {JUDGES: panel}
    runtime = build(
        models, ensembles, alone=list(models), cache=MapCache(None), tutti="", max_waiting=MOST_WAITING
    )
    runtime.fuser.start()
    try:
        yield Voices(runtime)
    finally:
        runtime.fuser.stop()


def _answer_sum(ended: Listener, start: int | None, stops: frozenset[int]) -> float | None:
    if ended.error is not None or start is None or len(ended.prompt) <= start:
        return None
    total = 0.0
    for token in ended.prompt[start:]:
        total += token.chosen.logprob
        if token.chosen.id in stops:
            break
    return total


def _model(source: Source) -> Any:
    return SimpleNamespace(
        **asdict(EngineOptions()) | asdict(source),
        host="inline",
        worker=SimpleNamespace(gpus=None),
        trust_remote_code=False,
        engine_args={},
        adapter=None,
        chat_template=None,
    )
