"""Submission of chat and text completions: checks a request, runs its sequences, answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request, Response

from alignment.errors import InvalidRequestError, field_error
from fusion.assembly.views import with_views
from fusion.core import Prompt
from fusion.ensemble import Ensemble
from fusion.options import FusionParams
from server.http.generation import Generation
from server.http.middleware.auth import flow_of
from server.http.protocol.chat import ChatRequest
from server.http.protocol.completions import CompletionRequest
from server.http.protocol.fusion import fusion_params, require_short
from server.http.protocol.sampling import (
    check_stream_options,
    choices,
    require_fixed_pivot,
    sampling_params,
    seeded,
)
from server.http.protocol.unsupported import check_unknown
from server.http.service import Service
from server.http.streaming import Shape, respond


@dataclass(frozen=True)
class Asked:
    """A request whose prompts are still to be read.

    Attributes:
        ensemble: the ensemble that answers.
        fusion: the options of fusion.
        choices: answers wanted for each prompt.
        located: whether prompts must tell where their tokens stand, to be scored.
    """

    service: Service
    body: ChatRequest | CompletionRequest
    ensemble: Ensemble
    fusion: FusionParams
    choices: int
    located: bool

    @classmethod
    def of(cls, service: Service, body: ChatRequest | CompletionRequest) -> Asked:
        """Check everything that can be checked without the prompts.

        Raises:
            RequestError: a field asks for what this server or this ensemble does not do.
        """
        check_unknown(body)
        check_stream_options(body)
        ensemble = service.ensemble(body.model or None)
        fusion = fusion_params(body.fusion, ensemble, service.settings.max_search)
        if body.fusion is not None:
            require_short(fusion, service.settings.max_views, service.settings.max_context_chars)
        if body.prompt_alternatives is not None:
            _require_the_prompt_itself(body, ensemble, fusion)
        ensemble, fusion = with_views(ensemble, fusion)
        n = choices(body, min(service.settings.max_choices, service.max_prompts))
        require_fixed_pivot(body, ensemble)
        located = ensemble.scores(fusion) or body.prompt_alternatives is not None
        return cls(service, body, ensemble, fusion, n, located)

    @property
    def model(self) -> str:
        """The name that the answer carries: the one that was asked for."""
        return self.body.model or self.ensemble.name

    async def answer(
        self,
        request: Request,
        prompts: list[Prompt],
        shape: Callable[[Generation], Shape],
        *,
        param: str,
    ) -> Response:
        """Run all choices for all prompts, and answer in this shape; `param` is the field they came from.

        Raises:
            Exception: a sequence could not be submitted, or failed before anything was sent.
        """
        settings, body, ensemble = self.service.settings, self.body, self.ensemble
        self._require_few_logprobs(prompts)
        members = ensemble.taking_part(self.fusion)
        from_checkpoint = settings.sampling_defaults == "checkpoint"
        submissions = []
        for prompt in prompts:
            sampling = sampling_params(
                body,
                vocabulary_size=ensemble.tokenizer.vocabulary_size,
                room=ensemble.max_new_tokens(prompt, members, param=param),
                default_max_tokens=settings.default_max_tokens,
                clamp=settings.long_max_tokens == "clamp",
                defaults=ensemble.models[ensemble.pivot].sampling if from_checkpoint else {},
            )
            submissions += [(prompt, seeded(sampling, i)) for i in range(self.choices)]
        generation = Generation(
            self.service.fuser,
            ensemble,
            self.fusion,
            prompts=prompts,
            record=request.state.record,
            timeout=settings.request_seconds,
            prompt_only=body.max_tokens == 0,
        )
        shaped = shape(generation)  # before anything runs that would have to be stopped if this fails
        generation.submit(submissions, flow=flow_of(request))
        return await respond(
            request,
            generation,
            shaped,
            settings,
            stream=bool(body.stream),
            include_usage=body.include_usage or settings.force_usage,
        )

    def _require_few_logprobs(self, prompts: list[Prompt]) -> None:
        """Raise InvalidRequestError where the prompts' log-probabilities are too many for one answer."""
        if (alternatives := self.body.prompt_alternatives) is None:
            return
        tokens = sum(len(prompt.ids[self.ensemble.pivot]) for prompt in prompts)
        count, most = tokens * self.choices * (alternatives + 1), self.service.settings.max_prompt_logprobs
        if count > most:
            raise InvalidRequestError(
                f"The prompts have {count} log-probabilities to answer with, alternatives included; this server "
                f"gives at most {most} in one answer: send fewer prompts, or ask for fewer alternatives.",
                param=self.body.prompt_field,
            )


def _require_the_prompt_itself(
    body: ChatRequest | CompletionRequest, ensemble: Ensemble, fusion: FusionParams
) -> None:
    """Raise InvalidRequestError where members are shown another prompt, whose tokens cannot be echoed."""
    if not fusion.views and fusion.guidance is None:
        return
    option = "views" if fusion.views else "guidance"
    if body.fusion is not None and getattr(body.fusion, option) is not None:
        raise field_error(
            f"fusion.{option}", "shows the members another prompt, whose tokens cannot be echoed; leave it out."
        )
    raise field_error(
        body.prompt_field,
        f"does not go with the {option} of {ensemble.name}, which shows the members another prompt; leave it out.",
    )
