"""One generation in progress: everything the fuser knows about it."""

from __future__ import annotations

import codecs
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import nan
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from alignment.errors import UnavailableError
from alignment.spelling import Spelling
from alignment.text.characters import beginning_at_the_end
from alignment.text.stops import control_tokens
from alignment.vocab_map import VocabMap
from fusion.core import (
    Account,
    Advance,
    Delta,
    End,
    FinishReason,
    Generate,
    Generated,
    Prompt,
    RoundReport,
    SamplingConstraint,
    Score,
    Task,
    Token,
    TokenLogProb,
    WeightingReport,
)
from fusion.ensemble import Ensemble, View
from fusion.inside import conditioned
from fusion.options import FusionParams, SamplingParams
from fusion.policy.pace import EXPECTED, FADING, SEEN, Costs
from fusion.policy.policy import ALL, Ask
from fusion.policy.registry import policy_of
from fusion.prompt.reading import PromptReading, Read
from fusion.prompt.scoring import PrefixScores
from fusion.sampling import BAN
from fusion.sequence.grammar import Bits
from fusion.sequence.seat import Seat, State
from fusion.sequence.summing import Sum
from fusion.sequence.text import TextStream, is_whole
from fusion.terms import terms_of
from fusion.weights import member_weights

log = logging.getLogger(__name__)

PLACE_BITS = 32
"""Bits of a number in an engine that are the sequence's own; those above are the place of a view there."""


class Sequence:
    """A sequence from its admission to its end; one loop (the fuser's) moves it."""

    def __init__(
        self,
        number: int,
        ensemble: Ensemble,
        prompt: Prompt,
        sampling: SamplingParams,
        fusion: FusionParams,
        flow: str,
        on_update: Callable[[Delta], None],
    ) -> None:
        self.number = number
        self.ensemble = ensemble
        self.view = ensemble.first
        self.decided = not ensemble.chooses_pivot  # else the prompt decides on the view
        self.prompt = prompt
        self.sampling = sampling
        self.fusion = fusion
        self.flow = flow
        self.on_update = on_update
        self.members = ensemble.taking_part(fusion)
        self.terms = terms_of(fusion, self.members)
        self.weights = (
            dict(zip(self.members, member_weights(self.members, fusion.weights).tolist(), strict=True))
            if self.terms is None
            else {name: self.terms.weights.get(name, 0.0) for name in self.members}
        )
        self._numbers = _numbers(number, {name: ensemble.engine(name) for name in self.members})
        self._names = {(ensemble.engine(name), own): name for name, own in self._numbers.items()}
        self.sum: Sum | None = None  # of the round to come, where log-probabilities are added up
        self.policy = policy_of(fusion)
        self.asked = ALL
        self.draft: tuple[int, ...] = ()  # the tokens that the members were given ahead of their choice
        self.cursor = 0  # how many of them were chosen
        self.company = 1  # sequences that are decoded at the same time
        self.costs = Costs()
        self._followed: dict[str, float] = {}  # by member, how often its best token was chosen lately,
        self._choices = 0.0  # of so many times
        self.seats = {name: self._seat(name) for name in self.members}
        self.generated: Counter[int] = Counter()
        self._extras: dict[str, tuple[tuple[int, ...], NDArray[np.uint8] | None]] = {}
        self.prompt_ids = (
            frozenset(prompt.ids[self.view.pivot]) if sampling.repetition_penalty != 1.0 else frozenset()
        )
        self.rng = np.random.default_rng(sampling.seed)
        self.named_stops = control_tokens(self.view.tokenizer, sampling.stop) if sampling.stop else {}
        self.constraint = self._constraint()
        self.text = TextStream(sampling.stop, include_stop=sampling.include_stop)
        self.length = 0  # tokens generated
        self.tokens: list[int] = []  # those of them that members were given,
        self.written = bytearray()  # and the text they add up to
        # Whether the maps for running text hold: there is text, or no template puts anything before it.
        self.spelled = not any(prompt.leads.values())
        self.lead_spelled = False  # whether the pivot spelled the space its template puts before the answer
        self.reading: PromptReading | None = None  # until the members have answered the prompt
        self._later: dict[str, Advance] = {}
        self.is_reading = False  # whether their answers are being evaluated
        self.echoed: tuple[Token, ...] = ()
        self.weighting: WeightingReport | None = None
        self.departed: dict[str, str] = {}
        self.returned: dict[str, int] = {}
        self.lost: set[str] = set()  # those of the departed whose member may come back
        self.rounds: list[RoundReport] = []
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")  # of the rounds' texts
        self.account = Account(submitted=perf_counter())
        self.sent = 0.0  # when the members were given what they are at
        self.arrived: list[tuple[str, float]] = []  # who has answered since, and when

    def _constraint(self) -> SamplingConstraint | None:
        """What the answer must satisfy, from its beginning, in the pivot's tokens."""
        constraint = self.prompt.constraints.get(self.view.pivot)
        return None if constraint is None else constraint.copy()

    def _seat(self, name: str) -> Seat:
        ids = self.prompt.ids[name]
        capacity = self.ensemble.models[name].member.capacity
        wanted = len(ids) + self.sampling.max_tokens
        if self.view.follows_ids(name):
            return Seat(len(ids), None, wanted)
        spelling = Spelling(self.ensemble.models[name].tokenizer, self.prompt.leads[name])
        # The same text may take a member more tokens than the pivot; a quarter more covers ordinary prose, and
        # what exceeds it is asked for in `grow`. Views share the room that was found for them together.
        if sum(self.ensemble.engine(other) == self.ensemble.engine(name) for other in self.members) > 1:
            return Seat(len(ids), spelling, wanted)
        return Seat(len(ids), spelling, min(wanted + self.sampling.max_tokens // 4 + 8, capacity.context))

    def number_of(self, name: str) -> int:
        """The number that this sequence has in the engine of a member; views of one model have one each."""
        return self._numbers[name]

    def member_at(self, engine: str, number: int) -> str | None:
        """The member that has this number in an engine; None where it has left."""
        name = self._names.get((engine, number))
        return name if name in self.seats else None

    def on_engine(self, engine: str) -> list[str]:
        """The members that one engine runs."""
        return [name for name in self.seats if self.ensemble.engine(name) == engine]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the pivot that end this sequence."""
        ended = frozenset() if self.sampling.ignore_eos else self.view.stop_ids
        return ended | self.wanted_stops

    @property
    def wanted_stops(self) -> frozenset[int]:
        """Ids of the pivot that the request itself wants to stop at, by id or by name."""
        return frozenset(self.sampling.stop_token_ids) | self.named_stops.keys()

    @property
    def forbidden(self) -> frozenset[int]:
        """Ids of the pivot that must not be drawn now."""
        if self.length < self.sampling.min_tokens:
            return self.view.stop_ids | self.wanted_stops
        if self.sampling.ignore_eos:  # but for an end token that the request itself wants to stop at
            return self.view.stop_ids - self.wanted_stops
        return frozenset()

    @property
    def names_an_end(self) -> bool:
        """Whether the request tells the pivot's ends apart: by a bias, or by stopping at some of them alone."""
        sampling, ends = self.sampling, self.view.stop_ids
        if not (sampling.logit_bias or sampling.ignore_eos):
            return False
        wanted = self.wanted_stops if sampling.ignore_eos else frozenset()
        return not ends.isdisjoint(sampling.logit_bias) or not ends.isdisjoint(wanted)

    @property
    def marked(self) -> bool:
        """Whether special tokens may come, where its constraint admits them."""
        return self.constraint is not None and bool(self.view.constrained)

    @property
    def voters(self) -> tuple[str, ...]:
        """The members whose distributions are fused in this round."""
        return tuple(name for name, seat in self.seats.items() if seat.votes)

    @property
    def ready(self) -> bool:
        """True once every member of this round has answered, second looks included."""
        if self.is_reading or (self.sum is not None and self.sum.awaited):
            return False
        return all(seat.latest is not None for seat in self.seats.values() if seat.votes)

    def map_of(self, name: str) -> VocabMap | None:
        """The vocabulary map that holds for this member in this round."""
        view = self.view
        maps = view.maps[name]
        if name in view.apart and self.names_an_end:
            maps = view.apart[name]
        elif self.marked:
            maps = view.constrained.get(name, maps)
        if self.spelled:
            return maps.rest
        return maps.unled if self.lead_spelled else maps.first

    @property
    def alone(self) -> bool:
        """Whether there is nothing to fuse and its one member decodes by itself."""
        if self.prompt.constraints:
            return False
        one = len(self.ensemble.models) == 1 and not self.fusion.report and self.sampling.prompt_logprobs is None
        return one and self.terms is None and self.ensemble.models[self.view.pivot].member.capacity.generates

    def open(self, memory: PrefixScores) -> Mapping[str, Task]:
        """Return every member's first task: its prompt, scored where weights, pivot or an echo depend on it."""
        if self.alone:
            return {self.view.pivot: self._generate(self.prompt.ids[self.view.pivot])}
        prompt, fusion, sampling, members = self.prompt, self.fusion, self.sampling, list(self.seats)
        if not self.scores:
            return {name: self.addressed(name, self._opening(name)) for name in members}
        view = self.ensemble.view(self.view.pivot if self.view.pivot in members else members[0])
        self.reading = PromptReading(self.ensemble, prompt, fusion, sampling, members, view, memory)
        advances = self.reading.advances(self.number)
        if self.reading.leads:
            self._later = {name: advances.pop(name) for name in members if name != view.pivot}
        return {name: self.addressed(name, advance) for name, advance in advances.items()}

    def open_later(self) -> dict[str, Advance]:
        """The prompts of members that were to wait for what the pivot finds in it, once it has answered."""
        pivot = self.seats.get(self.view.pivot)
        if not self._later or self.reading is None or pivot is None or pivot.latest is None:
            return {}
        later, self._later = self._later, {}
        each = self.reading.about(pivot.latest)
        return {
            name: self.addressed(name, replace(advance, each=each[name] if advance.scored else None))
            for name, advance in later.items()
            if name in self.seats
        }

    def addressed(self, name: str, advance: Advance) -> Advance:
        """An advance as a member is given it.

        It asks for what the request favours, and leaves out what the request bans; a member with another
        vocabulary is asked for the tokens that its map brings to them. Those with the pivot's list only what the
        constraint admits. What a sum may look at again is kept.
        """
        also, allowed = self.extras(name)
        if self.constraint is not None and self.view.follows_ids(name):
            admitted = self.constraint.bits()
            left = admitted if allowed is None else _both(admitted, allowed)
            allowed = left if left.any() else admitted
        return replace(
            advance,
            sequence=self._numbers[name],
            also=also,
            allowed=allowed,
            adapter=self.ensemble.models[name].view.adapter,
            kept=self.terms is not None,
        )

    @property
    def scores(self) -> bool:
        """Whether members score the prompt while they read it."""
        several = len(self.seats) > 1 and self.ensemble.scores(self.fusion)
        return self.sampling.prompt_logprobs is not None or several

    def settle_alone(self) -> None:
        """Take the one member that there is, if there is one only, for the pivot."""
        if len(self.seats) == 1:
            self._turn_to(self.ensemble.view(next(iter(self.seats))))

    def _opening(self, name: str) -> Advance:
        """A member's prompt, and what was forced after it already."""
        seat, ids = self.seats[name], self.prompt.ids[name]
        if not self.tokens:
            return Advance(self.number, 0, ids)
        seat.extend(self.tokens, bytes(self.written))
        return Advance(self.number, 0, ids + (self.tokens if seat.spelling is None else seat.spelling.ids))

    def forced(self, *, whole: bool = False) -> Iterator[Token]:
        """The tokens that the constraint forces next; each is to be written before the next is taken.

        With `whole` they end with a whole character.
        """
        if self.constraint is None:
            return
        tokens = self.constraint.forced()
        if whole:
            text, kept = b"", 0
            for index, token in enumerate(tokens, 1):
                text += self.view.surface(token)
                kept = index if is_whole(text) else kept
            tokens = tokens[:kept]
        for token in tokens:
            chosen = TokenLogProb(token, self.surface(token), 0.0)
            yield Token(chosen, (chosen,) if self.sampling.logprobs else ())

    def forced_report(self, token: Token) -> RoundReport | None:
        """The report of a token that was forced, where reports were asked for: no member has a part in it."""
        if not self.fusion.report:
            return None
        text = self.characters.decode(token.chosen.surface)
        return RoundReport(token.chosen.id, {}, {}, {}, {}, {}, text=text)

    def extras(self, name: str) -> tuple[tuple[int, ...], NDArray[np.uint8] | None]:
        """See `addressed`: the ids that a member is asked for, and the bitmask of those it may list."""
        if not self.sampling.logit_bias:
            return (), None
        if name not in self._extras:
            member = self.view.models[name].member
            bias = self.sampling.logit_bias
            favoured = [id for id, value in bias.items() if value > 0] if self.fusion.combine == "mixture" else []
            banned = [id for id, value in bias.items() if value <= BAN]
            maps = self.view.apart.get(name, self.view.maps[name]) if self.names_an_end else self.view.maps[name]
            also = maps.sources(favoured, member.vocabulary_size)
            out = maps.sources(banned, member.vocabulary_size)
            allowed = None
            if len(out):
                mask = np.ones(member.vocabulary_size, np.bool_)
                mask[out] = False
                allowed = np.packbits(mask, bitorder="little")
            self._extras[name] = tuple(also.tolist()), allowed
        return self._extras[name]

    def _generate(self, ids: list[int]) -> Generate:
        barred = self.view.stop_ids - self.wanted_stops if self.sampling.ignore_eos else ()
        pivot = self.view.pivot
        adapter = self.ensemble.models[pivot].view.adapter
        stops = sorted(self.stop_ids)
        return Generate(self._numbers[pivot], ids, self.sampling, stops, sorted(barred), adapter)

    def tokens_of(self, answer: Generated) -> Iterator[Token]:
        """The tokens that a member decoded by itself; each is to be written before the next is taken."""
        for row, token in enumerate(answer.tokens):
            if answer.ids is None or answer.logprobs is None:
                yield Token(TokenLogProb(token, self.surface(token), nan))  # not asked for
                continue
            ids, logprobs = answer.ids[row].tolist(), answer.logprobs[row].tolist()
            chosen, *top = (TokenLogProb(i, self.surface(i), p) for i, p in zip(ids, logprobs, strict=True))
            yield Token(chosen, tuple(top))

    def begin_reading(self) -> Callable[[], Read] | None:
        """What finds out, on any thread, what the prompt was scored for; None where it was not.

        The members have answered the prompt. Until `end_reading` the sequence is not ready again.
        """
        if self.reading is None:
            return None
        reading, self.reading, self.is_reading = self.reading, None, True
        answers = {name: seat.latest for name, seat in self.seats.items() if seat.latest and seat.votes}
        for name, answer in answers.items():  # what was scored is not needed any more
            self.seats[name].latest = replace(
                answer, ids=answer.ids[-1:], logprobs=answer.logprobs[-1:], appended_logprobs=None
            )
        return partial(reading.read, answers, dict(self.weights))

    def end_reading(self, read: Read) -> tuple[str, ...]:
        """Take what the prompt was scored for; returns who need not go on.

        UnavailableError where the member has left meanwhile whose tokens were to be emitted.
        """
        self.is_reading = False
        self.echoed = read.echoed
        if read.measured is None:
            return ()
        self.weights = {name: read.measured.weights.get(name, 0.0) for name in self.members}
        self.weighting = read.measured.report
        if read.measured.pivot not in self.seats:
            raise UnavailableError(
                f"Member {read.measured.pivot!r} was lost while the prompt was read; try again."
            )
        self._turn_to(self.ensemble.view(read.measured.pivot))
        return tuple(name for name in read.measured.report.pruned if name in self.seats)

    def _turn_to(self, view: View) -> None:
        """Take the pivot of `view`, before anything is generated."""
        self.decided = True
        if view is self.view:
            return
        self.view = view
        self.constraint = self._constraint()
        self._extras = {}
        for seat in self.seats.values():  # what was named is named by other ids now
            seat.latest = seat.latest and replace(seat.latest, named=None)
        self.named_stops = control_tokens(view.tokenizer, self.sampling.stop)
        for name, seat in self.seats.items():
            tokenizer = view.models[name].tokenizer
            seat.spelling = None if view.follows_ids(name) else Spelling(tokenizer, self.prompt.leads[name])
        if self.sampling.repetition_penalty != 1.0:
            self.prompt_ids = frozenset(self.prompt.ids[view.pivot])

    @property
    def lead(self) -> bytes:
        """The space that the pivot's template puts before the answer, as long as the pivot has not spelled it."""
        pending = not self.spelled and not self.lead_spelled
        return self.prompt.leads[self.view.pivot] if pending else b""

    def surface(self, token: int) -> bytes:
        """The text that a pivot token adds at this point."""
        return self.view.surface(token).removeprefix(self.lead)

    def write(self, token: int) -> bytes:
        """Note a token that the sequence goes on with; returns the text it adds."""
        surface = self.surface(token)
        if self.lead and self.view.surface(token).startswith(self.lead):
            self.lead_spelled = True
        self.spelled = self.spelled or bool(surface)
        self.tokens.append(token)
        self.written += surface
        return surface

    def ask(self, asked: Ask) -> None:
        """Decide who votes in the round to come; members that are not asked rest."""
        self.asked = asked
        if asked.members is not None:
            for name, seat in self.seats.items():
                if name not in asked.members:
                    seat.rest()

    def asks(self, name: str) -> bool:
        """Return whether this member is asked in the round to come."""
        return name in self.seats and (self.asked.members is None or name in self.asked.members)

    def follow(self, name: str) -> Advance | None:
        """The text that a member has not been given yet.

        None where it still reads what was written while it was away, and where its tokens did not change, so that
        its last answer stands: inside a character that is not spelled in tokens of its own.
        """
        seat = self.seats[name]
        seat.rolled_back = 0
        reads, cached = seat.state is State.READING, seat.cached
        if reads and seat.latest is None:
            return None
        surface = bytes(self.written[seat.heard :])
        if seat.spelling is not None and not surface:
            if seat.state is State.IDLE:
                seat.state = State.VOTING
            return None
        edit = seat.extend(self.tokens[seat.followed :], surface)
        score: Score = "last"
        if not edit.append and not reads and seat.is_inside:
            tokenizer = self.view.models[name].tokenizer
            spelled = seat.spell_beginning(tokenizer.beginnings, tokenizer.surfaces, self.extras(name)[0])
            edit = spelled or edit
            score = "appended" if len(edit.append) > 1 else "last"
        if not edit.append:
            if not reads:
                seat.state = State.VOTING
            return None
        if reads:
            self.returned[name] = self.length
        else:
            seat.rolled_back = cached - seat.prompt - edit.keep
        seat.state, seat.latest, seat.standing = State.VOTING, None, -1
        return self.addressed(name, Advance(self.number, seat.prompt + edit.keep, edit.append, score))

    def complete_characters(self) -> None:
        """Find what the members that vote say inside a character; those that say nothing are mute."""
        for name, seat in self.seats.items():
            if seat.votes and seat.is_inside and seat.inside is None:
                surfaces, also = self.view.models[name].tokenizer.surfaces, self.extras(name)[0]
                seat.inside = conditioned(seat.levels(also), surfaces, self.view.tokenizer, self.map_of(name))
                if seat.inside is None:
                    seat.state = State.MUTE

    @property
    def inside(self) -> tuple[str, ...]:
        """The members that speak inside a character, from before it, in this round."""
        return tuple(name for name, seat in self.seats.items() if seat.votes and seat.inside is not None)

    def drafted(self, token: int) -> bool:
        """Return whether a token that was chosen is the draft's."""
        return self.cursor < len(self.draft) and self.draft[self.cursor] == token

    def choice(self, best: Mapping[str, int], chosen: int) -> None:
        """Note whose best token was chosen."""
        self._choices = FADING * self._choices + 1
        for name, token in best.items():
            self._followed[name] = FADING * self._followed.get(name, 0.0) + (token == chosen)

    def followed(self, name: str) -> float:
        """How often a member's best token was the one that was chosen, lately: its share of the rounds."""
        return (self._followed.get(name, 0.0) + SEEN * EXPECTED) / (self._choices + SEEN)

    @property
    def may_draft(self) -> bool:
        """Whether any token can be drafted now."""
        # Members answer for favoured ids after the final token alone, and a constraint is asked token by token.
        # Inside a character members that spell it otherwise speak from before it.
        free = not self.sampling.logit_bias and self.constraint is None
        return free and self.spelled and not (self._spells and beginning_at_the_end(bytes(self.written[-3:])))

    @property
    def _spells(self) -> bool:
        """Whether a member spells the text in tokens of its own."""
        return any(seat.spelling is not None for seat in self.seats.values())

    def draftable(self, draft: Iterable[int]) -> tuple[int, ...]:
        """The tokens of a draft up to the first that ends the sequence, or after which no whole text stands."""
        if not self.may_draft:
            return ()
        if self.terms is not None and any(
            self.view.models[name].member.capacity.rows == 1 for name in self.seats
        ):  # a sum looks at every row of the draft again
            return ()
        room = self.sampling.max_tokens - self.length - 1
        taken: list[int] = []
        spells, end = self._spells, bytes(self.written[-3:])
        for token in draft:
            surface = self.surface(token)
            if len(taken) >= room or token in self.stop_ids or not surface:
                break
            end = (end + surface)[-3:]
            if spells and beginning_at_the_end(end):
                break
            taken.append(token)
        return tuple(taken)

    def add(self, token: Token) -> tuple[str, FinishReason | None, str | int | None]:
        """Take a token in: the new text that is certain, why the sequence ends with it, and what stopped it."""
        number, sampling = token.chosen.id, self.sampling
        self.length += 1
        self.generated[number] += 1
        if self.constraint is not None:
            self.constraint.take(number)
        if number in self.stop_ids:
            name = self.named_stops.get(number)
            reason = name if name is not None else number if number in sampling.stop_token_ids else None
            surface = self.surface(number) if name is None else name.encode()
            shown = surface if reason is not None and sampling.include_stop else b""
            return self.text.push(shown) + self.text.flush(), "stop", reason
        text = self.text.push(self.write(number), may_stop=self.length >= sampling.min_tokens)
        if self.text.stopped_by is not None:
            return text, "stop", self.text.stopped_by
        if self.constraint is not None and self.constraint.stopped:
            return text + self.text.flush(), "stop", None
        if self.length >= sampling.max_tokens:
            return text + self.text.flush(), "length", None
        return text, None, None

    def can_do_without(self, name: str) -> bool:
        """Return whether it goes on when this member fails."""
        others = len(self.seats) > 1 and self.ensemble.can_do_without(name)
        return others and not (self.decided and name == self.view.pivot)

    def leave(self, name: str, reason: str, *, may_return: bool = False) -> None:
        """Go on without a member; the rest share its weight."""
        del self.seats[name]
        if self.sum is not None:
            self.sum.lead_alone(self.view.pivot)
        self.departed[name] = reason
        if may_return:
            self.lost.add(name)

    def misses(self, name: str) -> bool:
        """Return whether a lost member would count if it came back: it has been given a weight."""
        has_weights = self.reading is None and not self.is_reading
        return name in self.lost and has_weights and self.weights[name] != 0

    def reopen(self, name: str) -> Advance:
        """Give a member that was lost its seat back: what it must read before it can take part again.

        It reads while the others go on, so the text will have grown when it is done. Then `follow` gives it the
        rest together with the next token.
        """
        seat = self._seat(name)
        seat.extend(self.tokens, bytes(self.written))
        read = self.tokens if seat.spelling is None else seat.spelling.ids
        seat.state = State.READING
        seat.reserved = max(seat.reserved, seat.cached)
        self.lost.remove(name)
        self.seats[name] = seat
        # In the order of all others: sequences are fused together when their voters are the same, in order.
        self.seats = {member: self.seats[member] for member in self.members if member in self.seats}
        return self.addressed(name, Advance(self.number, 0, self.prompt.ids[name] + read))

    def update(
        self,
        text: str,
        tokens: tuple[Token, ...] = (),
        finish: FinishReason | None = None,
        stop_reason: str | int | None = None,
        error: Exception | None = None,
        report: RoundReport | None = None,
    ) -> None:
        """Hand the caller what a round adds, with the round's report; with the end go those of all rounds."""
        pivot, prompt, self.echoed = self.view.pivot, self.echoed, ()
        delta = Delta(text, tokens, pivot, prompt, report)
        if finish is not None or error is not None:
            delta = End(
                text,
                tokens,
                pivot,
                prompt,
                report,
                finish,
                stop_reason,
                error,
                rounds=tuple(self.rounds),
                departed=dict(self.departed),
                returned=dict(self.returned),
                account=self.account,
                weighting=self.weighting,
            )
        try:
            self.on_update(delta)
        except Exception:  # the caller is gone; its cancellation follows
            log.exception("the caller of sequence %d did not take an update", self.number)


def own_number(number: int) -> int:
    """The number of the sequence that has this number in an engine."""
    return number & (1 << PLACE_BITS) - 1


def _numbers(number: int, engines: Mapping[str, str]) -> dict[str, int]:
    """A sequence's number in the engine of each member: its own, and others for further views of one model."""
    places: Counter[str] = Counter()
    numbers = {}
    for name, engine in engines.items():
        numbers[name] = number + (places[engine] << PLACE_BITS)
        places[engine] += 1
    return numbers


def _both(one: Bits, other: Bits) -> Bits:
    """The ids that are in both sets."""
    size = min(len(one), len(other))
    return one[:size] & other[:size]
