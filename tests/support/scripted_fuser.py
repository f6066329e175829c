"""An ensemble without models and a fuser that plays a script, so that the HTTP edge can be tested alone."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from alignment.errors import InvalidRequestError, PromptTooLongError
from alignment.text.boundaries import Located
from alignment.text.room import Room
from fusion.core import Capacity, Delta, End, Prompt, Token, TokenLogProb, Trouble
from fusion.ensemble import Ensemble, Model, View
from fusion.loop.observer import Load, MemberLoad, Observer
from fusion.loop.recovery import Attendance
from fusion.options import FusionParams, SamplingParams
from fusion.reports import RoundReport

END = 256
CONTEXT = 200


class ByteTokenizer:
    """One token per byte of UTF-8, and one that ends the answer."""

    vocabulary_size = 257
    chat_lead = b""
    kind = "byte-level"
    surfaces = (*(bytes([i]) for i in range(256)), None)
    byte_ids = tuple(range(256))
    special_ids = frozenset({END})
    continuation = SimpleNamespace(encode=lambda text: list(text.encode()))

    def __init__(self, fingerprint: str = "bytes") -> None:
        self.fingerprint = fingerprint
        self.hf = SimpleNamespace(
            chat_template="{{ messages }}",
            bos_token=None,
            bos_token_id=None,
            eos_token="<end>",
            unk_token=None,
            pad_token=None,
            convert_ids_to_tokens=self._names,
        )

    def encode(
        self, text: str, *, add_special_tokens: bool, limit: int | None = None, room: Room | None = None
    ) -> list[int]:
        self._require_length(text, limit, "prompt")
        return self.shortened(list(text.encode()) + ([END] if add_special_tokens else []), room)

    def shortened(self, ids: list[int], room: Room | None) -> list[int]:
        return ids if room is None else [ids[index] for index in room.kept(ids, None)]

    def locate(
        self, text: str, *, add_special_tokens: bool, limit: int | None = None, room: Room | None = None
    ) -> tuple[list[int], Located]:
        ids = self.encode(text, add_special_tokens=add_special_tokens, room=room)
        return ids, Located.of_surfaces([self.surface_of([token]) for token in ids])

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: dict[str, Any],
        limit: int | None = None,
        room: Room | None = None,
    ) -> list[int]:
        if messages[0]["content"] == "refuse this":
            raise InvalidRequestError("The template refuses it.", param="messages")
        lines = [f"{m['role']}:{m['content']}" for m in messages]
        text = "\n".join([*lines, *sorted(template_kwargs), "answer:" * add_generation_prompt])
        self._require_length(text, limit, "messages")
        return self.shortened(list(text.encode()), room)

    def _require_length(self, text: str, limit: int | None, param: str) -> None:
        """Refuse a text that is far too long, going by the least that it can come to."""
        if limit is not None and (least := len(text) // 2) > limit:
            raise PromptTooLongError(
                f"This model's maximum context length is {limit} tokens, but the prompt has at least {least}.",
                tokens=least,
                limit=limit,
                param=param,
            )

    def locate_chat(self, messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], Located]:
        ids = self.encode_chat(messages, **options)
        return ids, Located.of_surfaces([self.surface_of([token]) for token in ids])

    def control_tokens(self, texts: Iterable[str]) -> dict[int, str]:
        return {END: "<end>"} if "<end>" in texts else {}

    def decode(self, ids: list[int]) -> str:
        return "".join("<end>" if i == END else chr(i) for i in ids)

    def surface_of(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if i != END)

    def written(self, ids: list[int]) -> list[bytes]:
        return [self.surface_of([i]) for i in ids]

    def text_of(self, ids: list[int]) -> str:
        return self.surface_of(ids).decode(errors="replace")

    def _names(self, ids: int | list[int]) -> str | list[str]:
        if isinstance(ids, list):
            return [str(self._names(token)) for token in ids]
        return "<end>" if ids == END else f"<{ids:02X}>"


def ensemble(
    name: str = "pair",
    *,
    members: tuple[str, ...] = ("a", "b"),
    context: int = CONTEXT,
    defaults: FusionParams | None = None,
) -> Ensemble:
    """Two members, `a` (the pivot) and `b`, or these."""

    def model(member: str) -> Model:
        capacity = Capacity(context=context, cache_tokens=10_000, sequences=64)
        fake = SimpleNamespace(name=member, capacity=capacity, vocabulary_size=257)
        return Model(member=fake, tokenizer=ByteTokenizer(), stop_ids=(END,), origin=member)  # type: ignore[arg-type]

    models = {member: model(member) for member in members}
    view = View(models, members[0], {})
    return Ensemble(name, models, {members[0]: view}, defaults or FusionParams(), fingerprint=f"tutti-{name}")


def token(data: bytes, logprob: float = -0.5, top: tuple[tuple[bytes, float], ...] = ()) -> Token:
    """An emitted token with its alternatives; no bytes at all is the end token."""

    def entry(surface: bytes, value: float) -> TokenLogProb:
        return TokenLogProb(surface[0] if surface else END, surface, value)

    return Token(entry(data, logprob), tuple(entry(*alternative) for alternative in top))


def report(chosen: int) -> RoundReport:
    return RoundReport(
        token=chosen,
        weights={"a": 0.5, "b": 0.5},
        kept={"a": True, "b": True},
        contribution={"a": 0.75, "b": 0.25},
        mass={"a": 1.0, "b": 0.9},
        rolled_back={"a": 0, "b": 1},
    )


Step = Delta | float
Script = Callable[["Submission"], Iterable[Step]]


def says(*pieces: str, finish: str = "stop") -> list[Step]:
    """One round per piece, then the end."""
    rounds = [Delta(piece, (token(piece.encode()),)) for piece in pieces]
    return [*rounds, End("", (token(b""),) if finish == "stop" else (), finish=finish)]  # type: ignore[arg-type]


@dataclass
class Submission:
    """What `submit` was called with, and what became of it."""

    number: int
    ensemble: Ensemble
    prompt: Prompt
    sampling: SamplingParams
    fusion: FusionParams
    flow: str
    cancelled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class ScriptedFuser:
    """Plays `script` for every submission on a thread of its own: a `Delta` is delivered, a number is slept.

    `refuse` is raised by `submit` from the submission of that number on.
    """

    def __init__(self) -> None:
        self.script: Script = lambda submission: says("Hello", " world")
        self.refuse: tuple[int, Exception] | None = None
        self.submissions: list[Submission] = []
        self.started = False
        self.stopped = False
        self.silent: set[str] = set()
        self.trouble: dict[str, Trouble] = {}
        self.attendance = Attendance()
        self.observer = Observer()
        self._numbers = itertools.count(1)

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True

    def alive(self) -> bool:
        return not self.stopped

    def troubled(self) -> dict[str, Trouble]:
        return self.trouble

    def load(self) -> Load:
        away = self.silent | self.attendance.down.keys()
        members = {name: MemberLoad(name not in away, 0, 0, 0, 1000) for name in ("a", "b")}
        return Load(running={}, waiting={}, waiting_limit=256, members=members)

    def submit(
        self,
        ensemble: Ensemble,
        prompt: Prompt,
        sampling: SamplingParams,
        fusion: FusionParams,
        *,
        flow: str = "",
        on_update: Callable[[Delta], None],
    ) -> int:
        if self.refuse is not None and len(self.submissions) >= self.refuse[0]:
            raise self.refuse[1]
        submission = Submission(next(self._numbers), ensemble, prompt, sampling, fusion, flow)
        self.submissions.append(submission)
        threading.Thread(target=self._play, args=(submission, on_update), daemon=True).start()
        return submission.number

    def cancel(self, sequence: int) -> None:
        for submission in self.submissions:
            if submission.number == sequence:
                submission.cancelled.set()

    @property
    def last(self) -> Submission:
        return self.submissions[-1]

    def _play(self, submission: Submission, on_update: Callable[[Delta], None]) -> None:
        for step in self.script(submission):
            if isinstance(step, Delta):
                if submission.cancelled.is_set():
                    return
                on_update(step)
            elif submission.cancelled.wait(step):
                return
        submission.over.set()


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it becomes true within the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()
