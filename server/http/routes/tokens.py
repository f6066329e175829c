"""POST /tokenize, POST /detokenize, GET /tokenizer_info: the pivot's tokenizer."""

from __future__ import annotations

from fastapi import APIRouter

from alignment.errors import InvalidRequestError
from alignment.text.ids import require_ids
from server.http.protocol.body import StrictJsonRoute
from server.http.protocol.chat import ChatRequest
from server.http.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from server.http.protocol.unsupported import check_unknown
from server.http.routes.chat import prepared
from server.http.routes.submit import Asked
from server.http.routes.translated import valid_chat
from server.http.service import Service


def tokens_router(service: Service) -> APIRouter:
    """The routes, bound to what they serve. Without `model`, they speak of the default ensemble."""
    router = APIRouter(route_class=StrictJsonRoute, tags=["tokens"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeAnswer:
        """The tokens of a text, or of a conversation in the pivot's template."""
        check_unknown(body)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequestError("Give either prompt or messages.", param="prompt")
        ensemble = service.ensemble(body.model or service.default_model)
        tokenizer = ensemble.tokenizer

        def encode() -> tuple[list[int], list[str] | None]:
            if body.messages is not None:
                asked = body.model_dump(include=set(ChatRequest.model_fields), exclude_none=True)
                chat = valid_chat(asked | {"model": ensemble.name})
                ids = prepared(service, chat, Asked.of(service, chat), limited=False)[0].ids[ensemble.pivot]
            else:
                special = body.add_special_tokens is not False
                ids = tokenizer.encode(body.prompt or "", add_special_tokens=special)
            if not body.return_token_strs:
                return ids, None
            return ids, [str(token) for token in tokenizer.hf.convert_ids_to_tokens(ids)]

        ids, strings = await service.prepare(encode)
        return TokenizeAnswer(count=len(ids), max_model_len=ensemble.context, tokens=ids, token_strs=strings)

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeAnswer:
        """The text of tokens, special ones included."""
        check_unknown(body)
        tokenizer = service.ensemble(body.model or service.default_model).tokenizer

        def decode() -> str:
            require_ids(body.tokens, tokenizer.vocabulary_size, param="tokens")
            return tokenizer.decode(body.tokens)

        return DetokenizeAnswer(prompt=await service.prepare(decode))

    @router.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> TokenizerInfo:
        """Facts with which a client renders and counts tokens as the pivot does."""
        ensemble = service.ensemble(model or service.default_model)
        hf = ensemble.tokenizer.hf
        return TokenizerInfo(
            tokenizer_class=type(hf).__name__,
            vocabulary_size=ensemble.tokenizer.vocabulary_size,
            model_max_length=ensemble.context,
            chat_template=hf.chat_template,
            **{name: getattr(hf, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")},
        )

    return router
