"""Sequence: one generation in progress, and everything the fuser knows about it."""

from __future__ import annotations

import codecs
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import replace
from time import perf_counter

import numpy as np

from alignment.spelling import Spelling
from alignment.text.characters import beginning_at_the_end, is_whole
from alignment.vocab_map import VocabMap
from fusion.core import (
    Advance,
    Delta,
    End,
    FinishReason,
    Prompt,
    SamplingConstraint,
    Score,
    TextScores,
    Token,
    TokenLogProb,
)
from fusion.ensemble import Ensemble, View
from fusion.inside import Begun, conditioned, first_trust
from fusion.maps import Maps
from fusion.options import FusionParams, SamplingParams
from fusion.policy.pace import Costs, Followed
from fusion.policy.policy import ALL, Ask, Step
from fusion.policy.registry import policy_of
from fusion.prompt.reading import PromptReading
from fusion.prompt.weighing import decide
from fusion.reports import Account, RoundReport, WeightingReport
from fusion.sequence.bias import Bias, both, with_ends
from fusion.sequence.ends import Ends
from fusion.sequence.numbers import Numbers
from fusion.sequence.seat import Seat
from fusion.sequence.summing import Sum
from fusion.sequence.text import TextStream
from fusion.terms import terms_of
from fusion.weights import member_weights

log = logging.getLogger(__name__)


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
        self.decided = not ensemble.chooses_pivot  # else the prompt decides on the view
        self.prompt = prompt
        self.sampling = sampling
        self.fusion = fusion
        self.flow = flow
        self.on_update = on_update
        self.members = ensemble.taking_part(fusion)
        self.terms = terms_of(fusion, fusion.members or tuple(ensemble.models))
        self.weights = (
            dict(zip(self.members, member_weights(self.members, fusion.weights).tolist(), strict=True))
            if self.terms is None
            else {name: self.terms.weights.get(name, 0.0) for name in self.members}
        )
        self.weighting: WeightingReport | None = None
        closed: tuple[str, ...] = ()
        view = ensemble.first
        if (known := decide(ensemble, prompt, self.members, fusion)) is not None:  # its text says it all
            view, self.decided = ensemble.view(known.pivot), True
            self.weights, self.weighting, closed = known.weights, known.report, known.report.pruned
        self.likelihoods: dict[str, float] = {}  # see `weights_inside`
        self.numbers = Numbers(number, {name: ensemble.engine(name) for name in self.members})
        self.take_pivot(view)
        self.sum: Sum | None = None  # of the round to come, where log-probabilities are added up
        self.policy = policy_of(fusion)
        self.asked = ALL
        self.draft: tuple[Step, ...] = ()  # what the members were given ahead of their choice
        self.cursor = 0  # how many of them were chosen
        self.company = 1  # sequences that are decoded at the same time
        self.costs = Costs()
        self.followed = Followed()
        self.seats = {name: self.new_seat(name) for name in self.members if name not in closed}
        self.generated: Counter[int] = Counter()
        self.rng = np.random.default_rng(sampling.seed)
        self.text = TextStream(sampling.stop, include_stop=sampling.include_stop)
        self.length = 0  # tokens generated
        self.tokens: list[int] = []  # those of them that members were given,
        self.written = bytearray()  # and the text they add up to
        # Whether the maps for running text hold: there is text, or no template puts anything before it.
        self.spelled = not any(prompt.leads.values())
        self.lead_spelled = False  # whether the pivot spelled the space its template puts before the answer
        self.reading: PromptReading | None = None  # until the members have answered the prompt
        self.later: dict[str, Advance] = {}
        self.is_reading = False  # whether what they are asked for is being found, or their answers evaluated
        self.echoed: tuple[Token, ...] = ()
        self.scored: tuple[TextScores, ...] = ()
        self.departed: dict[str, str] = {}
        self.returned: dict[str, int] = {}
        self.lost: set[str] = set()  # those of the departed whose member may come back
        self.rounds: list[RoundReport] = []
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")  # of the rounds' texts
        self.account = Account(submitted=perf_counter())
        self.sent = 0.0  # when the members were given what they are at
        self.arrived: list[tuple[str, float]] = []  # who has answered since, and when

    def take_pivot(self, view: View) -> None:
        """Emit the tokens of this view's pivot, in which all that the request wants is said."""
        sampling, constraint = self.sampling, self.prompt.constraints.get(view.pivot)
        self.view = view
        self._maps: dict[str, Maps] = {}  # by member, as the request needs them
        self.trust = first_trust(self.members, view.follows_ids)
        self.constraint = None if constraint is None else constraint.copy()
        self.ends = Ends(view, sampling)
        self.bias = Bias(view, sampling, self.fusion, self.ends)
        repeated = self.prompt.ids[view.pivot] if sampling.repetition_penalty != 1.0 else ()
        self.prompt_ids = frozenset(repeated)

    def new_seat(self, name: str) -> Seat:
        """A seat with nothing of the answer, and the room that its member should need."""
        ids = self.prompt.ids[name]
        capacity = self.ensemble.models[name].member.capacity
        wanted = len(ids) + self.sampling.max_tokens
        if self.view.follows_ids(name):
            return Seat(len(ids), None, wanted)
        spelling = Spelling(self.ensemble.models[name].tokenizer, self.prompt.leads[name])
        # The same text may take a member more tokens than the pivot; a quarter more covers ordinary prose, and
        # what exceeds it is found by `Places.make_room`. Views share the room that was found for them together.
        if sum(self.ensemble.engine(other) == self.ensemble.engine(name) for other in self.members) > 1:
            return Seat(len(ids), spelling, wanted)
        return Seat(len(ids), spelling, min(wanted + self.sampling.max_tokens // 4 + 8, capacity.context))

    def on_engine(self, engine: str) -> list[str]:
        """The members that one engine runs."""
        return [name for name in self.numbers.names(engine) if name in self.seats]

    @property
    def marked(self) -> bool:
        """Whether special tokens may come, where its constraint admits them."""
        return self.constraint is not None and not self.constraint.is_open and self.view.masked

    @property
    def voters(self) -> tuple[str, ...]:
        """The members whose distributions are fused in this round."""
        return tuple([name for name, seat in self.seats.items() if seat.votes])

    @property
    def ready(self) -> bool:
        """True once every member of this round has answered, second looks included."""
        if self.is_reading or (self.sum is not None and self.sum.awaited):
            return False
        return not any(seat.latest is None and seat.votes for seat in self.seats.values())

    def map_of(self, name: str) -> VocabMap | None:
        """The vocabulary map that holds for this member in this round."""
        if (maps := self._maps.get(name)) is None:
            kept = self.view.tokenizer.special_ids if self.marked else self.ends.kept
            maps = self._maps[name] = self.view.maps_of(name, distinct=self.ends.distinct, kept=kept)
        if self.spelled:
            return maps.rest
        return maps.unled if self.lead_spelled else maps.first

    def addressed(
        self, name: str, advance: Advance, constraints: Several[SamplingConstraint | None] | None = None
    ) -> Advance:
        """An advance as a member is given it.

        It asks for what the request favours, and leaves out what the request bans; a member with another
        vocabulary is asked for the tokens that its map brings to them. Those with the pivot's list only what the
        constraint admits. What a sum may look at again is kept.

        Args:
            constraints: as they stand at each row of the answer; by default at one, as it stands now.
        """
        also, allowed = self.bias.of(name)
        states = (self.constraint,) if constraints is None else constraints
        if states[0] is not None and not states[0].is_open and self.view.follows_ids(name):
            masks = [
                with_ends(both(state.bits(), allowed), self.view, name) for state in states if state is not None
            ]
            allowed = masks[0] if len(masks) == 1 else np.stack(masks)
        elif allowed is not None and len(states) > 1:
            allowed = np.stack([allowed] * len(states))
        each = advance.each
        if also and len(states) > 1:
            each = np.tile(np.array(also, np.int32), (len(states) - 1, 1))
        number, adapter = self.numbers.of(name), self.ensemble.models[name].view.adapter
        if number == advance.sequence and not also and allowed is None and adapter is None and self.terms is None:
            return advance  # nearly always: a copy takes longer than all else here
        return replace(
            advance,
            sequence=number,
            also=also,
            allowed=allowed,
            adapter=adapter,
            kept=self.terms is not None,
            each=each,
        )

    def forced(self, *, whole: bool = False) -> Iterator[Token]:
        """The tokens that the constraint forces next; each is to be written before the next is taken.

        With `whole` they end with a whole character.
        """
        assert self.constraint is not None, "without a constraint nothing is forced"
        tokens = self.constraint.forced()
        while whole and not is_whole(b"".join(map(self.view.surface, tokens))):
            tokens.pop()
        for token in tokens:
            chosen = TokenLogProb(token, self.surface(token), 0.0)
            yield Token(chosen, (chosen,) if self.sampling.logprobs else ())

    def forced_report(self, token: Token) -> RoundReport | None:
        """The report of a token that was forced, where reports were asked for: no member has a part in it."""
        if not self.fusion.report:
            return None
        text = self.characters.decode(token.chosen.surface)
        return RoundReport(token.chosen.id, {}, {}, {}, {}, {}, text=text)

    @property
    def lead(self) -> bytes:
        """The space that the pivot's template puts before the answer, as long as the pivot has not spelled it."""
        pending = not self.spelled and not self.lead_spelled
        return self.prompt.leads[self.view.pivot] if pending else b""

    def surface(self, token: int) -> bytes:
        """The text that a pivot token adds at this point."""
        return self.view.surface(token).removeprefix(self.lead)

    def write(self, token: int) -> bytes:
        """Note a token that the sequence goes on with; returns the text it adds.

        Members with other tokens are given the spelling of a special token, such as a tag of thoughts.
        """
        surface = self.surface(token)
        if self.lead and self.view.surface(token).startswith(self.lead):
            self.lead_spelled = True
        heard = surface or self.view.tokenizer.spelling.get(token, "").encode()
        self.spelled = self.spelled or bool(heard)
        self.tokens.append(token)
        self.written += heard
        if self.likelihoods and not beginning_at_the_end(bytes(self.written[-3:])):
            self.likelihoods.clear()
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

    def stands(self, seat: Seat) -> bool:
        """Return whether a member's latest answer is to the text as it is."""
        given = seat.followed == len(self.tokens) and seat.heard == len(self.written)
        return given and seat.latest is not None and seat.state != "reading"

    def follow(self, name: str) -> Advance | None:
        """The text that a member has not been given yet.

        None where it still reads what was written while it was away, and where its tokens did not change, so that
        its last answer stands: inside a character that is not spelled in tokens of its own.
        """
        seat = self.seats[name]
        if self.stands(seat):
            seat.state = "voting"
            return None
        seat.rolled_back = 0
        reads, cached = seat.state == "reading", seat.cached
        if reads and seat.latest is None:
            return None
        surface = bytes(self.written[seat.heard :])
        if seat.spelling is not None and not surface:
            if seat.state == "idle":
                seat.state = "voting"
            return None
        edit = seat.extend(self.tokens[seat.followed :], surface)
        score: Score = "last"
        if not edit.append and not reads and seat.is_inside:
            tokenizer = self.view.models[name].tokenizer
            spelled = seat.spell_beginning(tokenizer.beginnings, tokenizer.surfaces, self.bias.of(name)[0])
            edit = spelled or edit
            score = "appended" if len(edit.append) > 1 else "last"
        if not edit.append:
            if not reads:
                seat.state = "voting"
            return None
        if reads:
            self.returned[name] = self.length
        else:
            seat.rolled_back = cached - seat.prompt - edit.keep
        seat.state, seat.latest, seat.standing = "voting", None, -1
        given = seat.given(edit)
        again = edit.keep - given.keep  # tokens that are not scored another time
        positions = range(again, len(given.append) - 1) if again and score != "last" else None
        advance = Advance(self.number, seat.prompt + given.keep, given.append, score, positions)
        return self.addressed(name, advance)

    def complete_characters(self) -> None:
        """Find what the members that vote say inside a character; those that say nothing are mute."""
        for name, seat in self.seats.items():
            if seat.is_inside and seat.votes and seat.inside is None:
                begun = Begun.at_the_end(self.tokens[-4:], self.view.surface)
                surfaces, levels = self.view.models[name].tokenizer.surfaces, seat.levels(self.bias.of(name)[0])
                spoken = conditioned(levels, surfaces, self.view.tokenizer, self.map_of(name), begun)
                if spoken is None:
                    seat.state = "mute"
                else:
                    seat.inside, self.likelihoods[name] = (spoken.ids, spoken.logprobs), spoken.likelihood

    @property
    def inside(self) -> tuple[str, ...]:
        """The members that speak inside a character, from before it, in this round."""
        return tuple([name for name, seat in self.seats.items() if seat.inside is not None and seat.votes])

    def drafted(self, token: int) -> bool:
        """Return whether a token that was chosen is the draft's."""
        return self.cursor < len(self.draft) and self.draft[self.cursor].tokens[0] == token

    def add(self, token: Token) -> tuple[str, FinishReason | None, str | int | None]:
        """Take a token in: the new text that is certain, why the sequence ends with it, and what stopped it."""
        number, sampling = token.chosen.id, self.sampling
        self.length += 1
        self.generated[number] += 1
        if self.constraint is not None:
            self.constraint.take(number)
        if number in self.ends.ids:
            name = self.ends.named.get(number)
            reason = name if name is not None else number if number in sampling.stop_token_ids else None
            surface = self.surface(number) if name is None else name.encode()
            shown = surface if reason is not None and sampling.include_stop else b""
            return self.text.push(shown) + self.text.flush(), "stop", reason
        # What waits to be known as a stop string, which a special token is no part of, comes before that token.
        text = "" if (surface := self.write(number)) else self.text.flush()
        text += self.text.push(surface, may_stop=self.length >= sampling.min_tokens)
        if self.text.stopped_by is not None:
            return text, "stop", self.text.stopped_by
        if self.constraint is not None and self.constraint.stopped:
            return text + self.text.flush(), "stop", None
        if self.length >= sampling.max_tokens:
            return text + self.text.flush(cut=True), "length", None
        return text, None, None

    def leave(self, name: str, reason: str, *, may_return: bool = False) -> None:
        """Go on without a member; the rest share its weight."""
        del self.seats[name]
        if self.sum is not None:
            self.sum.lead_alone()
        self.departed[name] = reason
        if may_return:
            self.lost.add(name)

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
                scores=self.scored,
            )
        try:
            self.on_update(delta)
        except Exception:  # the caller is gone; its cancellation follows
            log.exception("the caller of sequence %d did not take an update", self.number)
