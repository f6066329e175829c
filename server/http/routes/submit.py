"""Submission of chat and text completions: checks a request, runs its sequences, answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request, Response

from fusion.core import Prompt
from fusion.ensemble import Ensemble
from fusion.options import FusionParams
from server.http.generation import Generation
from server.http.middleware.auth import flow_of
from server.http.protocol.chat import ChatRequest
from server.http.protocol.completions import CompletionRequest
from server.http.protocol.fusion import fusion_params
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
        ensemble = service.ensemble(body.model)
        fusion = fusion_params(body.fusion, ensemble, service.settings.max_search)
        n = choices(body, service.settings.max_choices)
        require_fixed_pivot(body, ensemble)
        located = ensemble.scores(fusion) or body.prompt_alternatives is not None
        return cls(service, body, ensemble, fusion, n, located)

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
        members = ensemble.taking_part(self.fusion)
        submissions = []
        for prompt in prompts:
            sampling = sampling_params(
                body,
                vocabulary_size=ensemble.tokenizer.vocabulary_size,
                room=ensemble.max_new_tokens(prompt, members, param=param),
                default_max_tokens=settings.default_max_tokens,
            )
            submissions += [(prompt, seeded(sampling, i)) for i in range(self.choices)]
        generation = Generation(
            self.service.fuser,
            ensemble,
            self.fusion,
            prompts=prompts,
            record=request.state.record,
            timeout=settings.request_seconds,
        )
        generation.submit(submissions, flow=flow_of(request))
        return await respond(
            request,
            generation,
            shape(generation),
            stream=bool(body.stream),
            include_usage=body.include_usage,
            keep_alive_seconds=settings.keep_alive_seconds,
        )
