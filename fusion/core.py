"""The words that every other module shares. Data only: no behaviour beyond what a field means.

A *sequence* is one generation in progress. A *round* is one fused token of one sequence. A *member* is a
continuous-batching engine that knows token ids, never text: it is given a `Task`, and sends an `Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from alignment.text.boundaries import Indices, Located
from fusion.options import SamplingParams
from fusion.reports import Account, RoundReport, WeightingReport

Found = TypeVar("Found")
Ids = NDArray[np.int32]
LogProbs = NDArray[np.float32]
Floats = NDArray[np.float64]
Score = Literal["last", "appended", "all"]
FinishReason = Literal["stop", "length"]
MOST_BIASED = 1024  # ids that an engine's own loop takes in a bias, those that are barred included
OnMemberFailure = Literal["fail", "degrade"]  # what becomes of sequences: a clear error, or they go on without


@dataclass(frozen=True, slots=True)
class Advance:
    """Extend one cached sequence of a member.

    `keep` tokens of what is cached stay valid: 0 opens the sequence, less than what is cached rolls back.
    `append` (at least one id) follows them. The answer always holds the distribution after the final token, and
    with a `score` other than `"last"` something about the tokens before it:

    * `"appended"`: the log-probability of each appended token but the first. (vLLM: `prompt_logprobs=0`.)
    * `"all"`: that, and the k best after every appended token. (vLLM: `prompt_logprobs=k`.)

    `positions` limits it to these indices of `append`, ascending and below `len(append) - 1`; None is all of them.
    Index i stands for what comes after `append[i]`, so for the log-probability of `append[i + 1]`. An engine that
    can only score everything picks from it; one with a prefix cache can run what lies before the first position
    like any other tokens.

    After the final token, `also` names ids whose log-probabilities are wanted whether they are among the k best
    or not (see `NextTokens.named`), and `allowed` limits the k best to the ids whose bit is set in it: a bitmask
    over the vocabulary, packed as `np.packbits` does in little order; ids beyond its end are not allowed. With two
    dimensions it has a bitmask for each row of the answer.

    `adapter` names the one that the sequence runs with, None for the bare model; it holds from the advance that
    opens the sequence until it is closed. With `kept` the engine can answer a `Look` at the last rows of this
    answer afterwards (`Capacity.rows`). `each` names ids [len(scored), m] after every scored token, as `also` does
    after the final one.
    """

    sequence: int
    keep: int
    append: Sequence[int]
    score: Score = "last"
    positions: Sequence[int] | None = None
    also: Sequence[int] = ()
    allowed: NDArray[np.uint8] | None = None
    adapter: str | None = None
    kept: bool = False
    each: NDArray[np.int32] | None = None

    @property
    def scored(self) -> Sequence[int]:
        """The indices of `append` after which something is asked for besides the final one."""
        if self.score == "last":
            return ()
        return range(len(self.append) - 1) if self.positions is None else self.positions

    @property
    def length(self) -> int:
        """Tokens of the sequence once it is done."""
        return self.keep + len(self.append)


@dataclass(frozen=True, slots=True)
class Look:
    """A second look at a row of the sequence's last answer, which was asked for with `kept`: no forward pass.

    Attributes:
        ids: those whose log-probabilities are wanted, whether they were among the k best or not.
        row: which of the rows of that answer, the last one by default.
    """

    sequence: int
    ids: Sequence[int]
    row: int = -1


@dataclass(frozen=True, slots=True)
class Looked:
    """The answer to a `Look`: log-probabilities [m] float32, normalised over the full vocabulary."""

    sequence: int
    logprobs: LogProbs


@dataclass(frozen=True, slots=True)
class NextTokens:
    """A member's answer to an `Advance`. The final row of ids and logprobs is that after the final token.

    Attributes:
        ids: [n, k] int32, the k best next tokens, best first; n is `len(scored) + 1` with `score="all"`, else 1.
        logprobs: [n, k] float32, natural logs, normalised over the full vocabulary before `allowed` and truncation
            to k; -inf where fewer than k ids are allowed.
        appended_logprobs: [len(scored)] float32, the log-probability of `append[i + 1]` given all before it, for
            each scored i. None with `score="last"`.
        named: [1, m] float32, the log-probabilities of the m ids of `also` after the final token, normalised in
            the same way and whether they are allowed or not. None where there are none.
        each: [len(scored), m] float32, those of the ids of `each`. None where there are none.
        reused: tokens of `append` that another sequence's cache held already, as a prefix cache finds them.
    """

    sequence: int
    ids: Ids
    logprobs: LogProbs
    appended_logprobs: LogProbs | None = None
    named: LogProbs | None = None
    each: LogProbs | None = None
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Generate:
    """Open a sequence and decode it with the engine's own loop and sampler (see `Capacity.generates`).

    Where nothing is fused nothing has to be asked for token by token. It ends after a token of `stops` or after
    `sampling.max_tokens`; until `sampling.min_tokens` no stop is drawn, and never one of `barred`. Stop strings
    are not the engine's: the caller that finds one closes the sequence.
    """

    sequence: int
    ids: list[int]
    sampling: SamplingParams
    stops: list[int]
    barred: list[int]
    adapter: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the sequence once it is done, at the most."""
        return len(self.ids) + self.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens that a `Generate` has produced since the last such answer.

    Attributes:
        tokens: n ids, at least one.
        ids: [n, 1 + k] int32, each token and the k best in its place, best first, where `sampling.logprobs` asks
            for k; else None.
        logprobs: [n, 1 + k] float32, theirs, before bias, penalties and temperature.
        finished: whether there is no more to come; the sequence keeps its place until it is closed.
        reused: tokens of the prompt that another sequence's cache held already; in the first answer.
    """

    sequence: int
    tokens: list[int]
    ids: Ids | None
    logprobs: LogProbs | None
    finished: bool
    reused: int = 0


@dataclass(frozen=True, slots=True)
class AdvanceFailed:
    """A member could not do what it was asked; the sequence is closed there. `reason` is one sentence."""

    sequence: int
    reason: str


Task = Advance | Look | Generate
Answer = NextTokens | Looked | Generated | AdvanceFailed


@dataclass(frozen=True, slots=True)
class Down:
    """A member lost its engine, and with it everything cached; what is submitted until `Up` is dropped.

    `reason` is a part of a sentence that begins with the member's name. The member tries to come back;
    `retry_after` is about how many seconds that takes, None where only a restart of the server helps.
    """

    reason: str
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class Up:
    """A member that was down is back, with nothing cached. Its `capacity` may have changed."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of a member: tokens per sequence, tokens of all open sequences, open sequences.

    A sequence takes room for its tokens in whole blocks of `block`. `generates` says whether there is a loop that
    takes a `Generate`. `rows` of an answer, the last ones, can be looked at again; where it is 1, a sum
    does not draft.
    """

    context: int
    cache_tokens: int
    sequences: int
    block: int = 1
    generates: bool = False
    rows: int = 16


class Trouble(NamedTuple):
    """A member that answers nothing: `reason` is a part of a sentence; `lasting` where no step would end it."""

    reason: str
    lasting: bool


class Member(Protocol):
    """One checkpoint as the fuser sees it. All methods return at once and may be called from any thread.

    `deliver`, given to `start`, is called from the member's own thread with every batch of answers. Answers
    come in whatever order the engine finishes them, at most one per sequence at a time: the fuser submits
    the next `Advance` of a sequence only after the answer to the last one. A member that can lose its engine
    and get it back says so the same way.
    """

    name: str
    vocabulary_size: int
    capacity: Capacity

    @property
    def step_seconds(self) -> float:
        """Seconds of the engine step that the answers being delivered come from; 0 if that is not known."""

    def trouble(self) -> Trouble | None:
        """Return why work is not answered; None where it is, and where `Down` says all there is to say."""

    def start(self, deliver: Deliver) -> None:
        """Begin to accept work."""

    def submit(self, work: list[Task]) -> None:
        """Queue work; what is handed over together can share a forward pass."""

    def close(self, sequences: Collection[int]) -> None:
        """Free the caches of these sequences and forget their queued work; unknown ids are ignored."""

    def stop(self) -> None:
        """Finish the step in progress and give back threads and memory."""


Delivery = list[Answer] | Down | Up
Deliver = Callable[[Member, Delivery], None]


class SamplingConstraint(Protocol):
    """What the next token may be, as it stands after the tokens taken so far. Ids are the pivot's, V of them.

    One that `is_open` admits whatever members say, but where something is forced. One that `admits_any_text`
    limits special tokens alone.
    """

    is_open: bool
    admits_any_text: bool

    def bits(self) -> NDArray[np.uint8]:
        """[V / 8], the ids that may come next, a bit each in little order."""

    def allowed(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for each of `ids` (any shape, padded with -1) that may come next."""

    def admits(self, token: int) -> bool:
        """Return whether a token may come next."""

    def forced(self) -> list[int]:
        """Tokens that must come next whatever is sampled; often none."""

    def fallback(self) -> int:
        """An id that may come next, for a round none of whose candidates may."""

    def take(self, token: int) -> None:
        """Go on after this token."""

    @property
    def stopped(self) -> bool:
        """True where the answer must end here."""

    def copy(self) -> SamplingConstraint:
        """Another one in the same state."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in every member's own tokens.

    `ids` maps a member's name to its token ids (with its own template and special tokens). `leads` maps it to
    the bytes its template puts between prompt and answer as part of the answer's first token (the space after
    `[/INST]`), b"" for most. `located` maps it to where its tokens stand in the messages, for prompts that are to
    be scored. `constraints` are what answers must satisfy, by the pivot whose tokens they are in; each answer
    takes a copy. `texts` are the contents of the messages, or the text itself, that all members are shown. `found`
    is what was found out about it, for all answers to it (see `once`).
    """

    ids: dict[str, list[int]]
    leads: dict[str, bytes]
    located: dict[str, Located] | None = None
    constraints: Mapping[str, SamplingConstraint] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    found: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, what: Hashable, find: Callable[[], Found]) -> Found:
        """Find something out about it, unless it was found before; `what` tells it from everything else."""
        if what not in self.found:
            self.found[what] = find()
        return cast("Found", self.found[what])


@dataclass(frozen=True, slots=True)
class TokenLogProb:
    """A token of the pivot with the text it adds and its natural log-probability in the fused distribution."""

    id: int
    surface: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """An emitted token and, where asked for, the best alternatives (best first)."""

    chosen: TokenLogProb
    top: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True, slots=True)
class TextScores:
    """The members' scores of the U units of one text; all by member.

    Attributes:
        nats: [U], its loss on a unit, the negative log-probability of the unit's text.
        tokens: [U], how many of its tokens that are.
        first: [U] int32, the first of these.
        best: its best tokens where a unit begins and the one that did come (ids and log-probabilities, [U, k + 1]
            each), if these were asked for.
        text: [U], the loss where tokens that stand for the same bytes count together, if its best tokens were
            asked for.
    """

    nats: dict[str, Floats]
    tokens: dict[str, Indices]
    first: dict[str, Ids]
    best: dict[str, tuple[Ids, LogProbs]]
    text: dict[str, Floats] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes, with about what the objects around the numbers take."""
        flat = (self.nats, self.tokens, self.first, self.text)
        sizes = [array.nbytes for by_member in flat for array in by_member.values()]
        sizes += [array.nbytes for pair in self.best.values() for array in pair]
        return 1024 + sum(sizes) + 192 * len(sizes)

    @property
    def empty(self) -> bool:
        """Return whether there are no units: other texts had all the positions."""
        return not any(map(len, self.nats.values()))

    @property
    def finite(self) -> bool:
        """Return whether every loss is a number."""
        return all(bool(np.isfinite(nats).all()) for nats in self.nats.values())


@dataclass(frozen=True, slots=True)
class Delta:
    """New text and tokens of a sequence.

    Attributes:
        text: new text that later tokens can no longer take back: whole characters, held back while it could be the
            start of a stop string.
        tokens: of this round, in order.
        pivot: the member whose tokens these are.
        prompt: the tokens of the prompt, in the first delta, where they were asked for; nothing predicts the first
            of them, whose log-probability is NaN.
        round: the report of the round, where it was asked for.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    pivot: str | None = None
    prompt: tuple[Token, ...] = ()
    round: RoundReport | None = None


@dataclass(frozen=True, slots=True)
class End(Delta):
    """The last `Delta` of a sequence: why it ends, and the report on it.

    Attributes:
        finish: set unless it failed.
        stop_reason: the stop string or stop token id that ended it, None for the end token.
        error: why it failed.
        rounds: one report per token, where they were asked for.
        departed: which members left, and why.
        returned: after how many tokens those of them took part again that came back.
        account: where its time went.
        weighting: how its weights came about, where the prompt decided on them.
        scores: the members' scores of the prompt's texts, where there are any and a report was asked for.
    """

    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    error: Exception | None = None
    rounds: tuple[RoundReport, ...] = ()
    departed: dict[str, str] = field(default_factory=dict)
    returned: dict[str, int] = field(default_factory=dict)
    account: Account | None = None
    weighting: WeightingReport | None = None
    scores: tuple[TextScores, ...] = ()
