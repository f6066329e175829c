"""Sampling fields that chat and text completions share, and their translation into `SamplingParams`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from alignment.errors import field_error
from alignment.text.ids import require_ids
from alignment.text.room import Room
from fusion.loop.line import require_room
from fusion.options import Offset, SamplingParams
from server.http.errors import shorten
from server.http.protocol.common import Listed, RequestModel, Strings
from server.settings.derive import overrides, updated

if TYPE_CHECKING:
    from fusion.ensemble import Ensemble

# Below this, dividing by the temperature is nothing but a greedy choice with rounding errors.
GREEDY_BELOW = 1e-5
SEEDS = 2**64


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


MOST_IN_LOGIT_BIAS = 1024  # tokens in a logit_bias, which costs time in every round
MOST_STOPS = 16  # stop strings of a request, and stop token ids
MOST_LOGPROBS = 20  # alternatives per token


def _few_biased(value: Any) -> Any:
    """Refuse too many tokens before each is looked at: an object has no `fail_fast`."""
    if isinstance(value, dict) and len(value) > MOST_IN_LOGIT_BIAS:
        raise field_error(
            "logit_bias", f"names {len(value)} tokens, but at most {MOST_IN_LOGIT_BIAS} are allowed."
        )
    return value


LogitBias = Annotated[dict[str, Offset], BeforeValidator(_few_biased)]
# Options that a request writes in another way than the fuser takes them.
NOT_THE_SAME = ("logit_bias", "stop", "stop_token_ids", "include_stop", "logprobs", "prompt_logprobs")


class SamplingFields(overrides(SamplingParams, RequestModel, without=NOT_THE_SAME)):  # type: ignore[misc]
    """The options of `fusion.options.SamplingParams`, and what else both requests have.

    Null is the same as leaving a field out.
    """

    default_max_tokens: ClassVar[int | None] = None
    """Without a limit in the request; None for all the room there is."""

    n: Annotated[int, Field(ge=1)] | None = None
    logit_bias: LogitBias | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Listed[str] | None = None
    guided_grammar: str | None = None
    allowed_token_ids: Listed[int] | None = None
    bad_words: Listed[str] | None = None
    thinking_token_budget: Annotated[int, Field(ge=-1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    return_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    stop: Strings | None = None
    stop_token_ids: Listed[int] | None = None
    include_stop_str_in_output: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    request_id: str | None = None

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that limits the answer's length, and its value."""
        return "max_tokens", self.max_tokens

    @property
    @abstractmethod
    def alternatives(self) -> tuple[str, int | None]:
        """The field that says how many alternatives to report per token, and their number; None for no report."""

    @property
    def prompt_alternatives(self) -> int | None:
        """The number of alternatives to report per token of the prompt; None for no report."""
        return self.prompt_logprobs

    @property
    def prompt_field(self) -> str:
        """The field that asks for these."""
        return "prompt_logprobs"

    @property
    def include_usage(self) -> bool:
        """Return whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Return whether every chunk of a stream carries the usage so far."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


def sampling_params(
    fields: SamplingFields,
    *,
    vocabulary_size: int,
    room: int,
    default_max_tokens: int | None,
    clamp: bool,
    defaults: Mapping[str, float],
) -> SamplingParams:
    """The sampling parameters that the fields ask for.

    Args:
        fields: of the request.
        vocabulary_size: of the pivot, whose ids `logit_bias` and `stop_token_ids` name.
        room: how many tokens fit after the prompt.
        default_max_tokens: of this server, for requests without a limit; None for all the room there is.
        clamp: shorten a limit beyond the room instead of refusing it.
        defaults: options, by name, that hold where the request leaves them out.

    Raises:
        InvalidRequestError: a field exceeds what this ensemble or this server allows.
    """
    limited_by, max_tokens = fields.limit
    if max_tokens is None:
        max_tokens = min(room, fields.default_max_tokens or default_max_tokens or room)
    elif not clamp:
        require_room(max_tokens, room, param=limited_by)
    max_tokens = max(min(max_tokens, room), 1)  # 0 asks for the prompt alone, which takes a round all the same
    min_tokens = fields.min_tokens or 0
    if min_tokens > max_tokens:
        raise field_error(
            "min_tokens", f"is {shorten(min_tokens)}, but the answer is limited to {max_tokens} tokens."
        )
    for name, count in (fields.alternatives, ("prompt_logprobs", fields.prompt_logprobs)):
        if count is not None and count > MOST_LOGPROBS:
            raise field_error(name, f"should be at most {MOST_LOGPROBS}, not {shorten(count)}.")
    params = updated(
        SamplingParams(max_tokens, **defaults),  # type: ignore[arg-type]
        fields,
        max_tokens=max_tokens,
        logit_bias=_logit_bias(fields.logit_bias or {}, vocabulary_size),
        seed=None if fields.seed is None else fields.seed % SEEDS,
        stop=_stop(fields.stop),
        stop_token_ids=_stop_token_ids(fields.stop_token_ids or [], vocabulary_size),
        include_stop=bool(fields.include_stop_str_in_output),
        logprobs=fields.alternatives[1],
        prompt_logprobs=fields.prompt_alternatives,
    )
    greedy = params.temperature < GREEDY_BELOW
    params = replace(params, temperature=0.0 if greedy else params.temperature, top_k=max(params.top_k, 0))
    # A nucleus of no mass still holds the best token.
    return params if params.top_p > 0 else replace(params, top_k=1, top_p=1.0)


def seeded(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of one of `n` choices: a seed makes them reproducible, not the same."""
    return params if params.seed is None else replace(params, seed=(params.seed + index) % SEEDS)


def choices(fields: SamplingFields, limit: int) -> int:
    """`n`, within what the server allows."""
    n = fields.n or 1
    if n > limit:
        raise field_error("n", f"should be at most {limit}, not {shorten(n)}.")
    return n


def require_fixed_pivot(fields: SamplingFields, ensemble: Ensemble) -> None:
    """Token ids are the pivot's, so they mean nothing where each prompt chooses the pivot."""
    if not ensemble.chooses_pivot:
        return
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        if getattr(fields, name):
            raise field_error(
                name, f"names token ids, but {ensemble.name} has no fixed pivot for these; leave it out."
            )
    needs = f"needs a fixed pivot, but in {ensemble.name} each prompt decides on it"
    if fields.prompt_logprobs is not None:
        raise field_error("prompt_logprobs", f"{needs}; leave it out.")
    if fields.truncate_prompt_tokens not in (None, -1):
        raise field_error("truncate_prompt_tokens", f"{needs}; leave it out.")
    if fields.prompt_alternatives is not None:
        raise field_error(fields.prompt_field, f"with logprobs {needs}; leave out one of the two.")


def check_stream_options(fields: SamplingFields) -> None:
    """Refuse what means nothing with or without a stream: `stream_options`, and `prompt_logprobs` as in vLLM."""
    asked = fields.stream_options.model_dump() if fields.stream_options is not None else {}
    if any(asked.values()) and not fields.stream:
        raise field_error("stream_options", "is allowed only with stream: true.")
    if fields.prompt_logprobs is not None and fields.stream:
        raise field_error("prompt_logprobs", "is allowed only without a stream; leave out one of the two.")


def prompt_room(fields: SamplingFields, ensemble: Ensemble) -> Room | None:
    """What `truncate_prompt_tokens` leaves of a prompt; None where it cuts nothing.

    -1 stands for all that the context holds beside the answer. A limit of the answer that alone fills the context
    is shortened or refused later, and leaves the prompt all but one token. A prompt that decides on the pivot is
    not cut by -1: it has to fit.

    Raises:
        InvalidRequestError: it is 0, or `truncation_side` says which side without it.
    """
    wanted = fields.truncate_prompt_tokens
    if wanted is None:
        if fields.truncation_side is not None:
            raise field_error("truncation_side", "is allowed only with truncate_prompt_tokens.")
        return None
    if wanted == 0:
        raise field_error("truncate_prompt_tokens", "should be at least 1, or -1 for all that fits.")
    side = fields.truncation_side or "left"
    if wanted > 0:
        return Room(wanted, side)
    if ensemble.chooses_pivot:
        return None
    answer = fields.limit[1] or 1
    return Room(ensemble.context - (answer if answer < ensemble.context else 1), side)


def _logit_bias(bias: dict[str, float], vocabulary_size: int) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < vocabulary_size):
            raise field_error(
                "logit_bias", f"has the key {shorten(key)}, but token ids go from 0 to {vocabulary_size - 1}."
            )
    return {int(key): value for key, value in bias.items()}


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else stop or []
    if len(strings) > MOST_STOPS:
        raise field_error("stop", f"holds {len(strings)} strings; at most {MOST_STOPS} are allowed.")
    if "" in strings:
        raise field_error("stop", "holds an empty string, which would stop at once; leave it out.")
    return tuple(dict.fromkeys(strings))


def _stop_token_ids(ids: list[int], vocabulary_size: int) -> tuple[int, ...]:
    if len(ids) > MOST_STOPS:
        raise field_error("stop_token_ids", f"holds {len(ids)} ids; at most {MOST_STOPS} are allowed.")
    require_ids(ids, vocabulary_size, param="stop_token_ids")
    return tuple(dict.fromkeys(ids))
