"""Ensembles whose members run elsewhere, on engines that compute plain sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from alignment.text.tokenizer import Tokenizer
from fusion.assembly.ensembles import build_ensemble
from fusion.core import Member
from fusion.ensemble import Ensemble, Model
from fusion.members.registry import EngineSpec
from tests.support.worker_engines import sums


def hosted_ensemble(
    tokenizers: Mapping[str, Tokenizer], start: Callable[[str, EngineSpec], Member], pivot: str
) -> Ensemble:
    """An ensemble of one member for each tokenizer, started by `start`."""
    models = {}
    for name, tokenizer in tokenizers.items():
        member = start(name, sums(vocabulary=tokenizer.vocabulary_size, k=tokenizer.vocabulary_size))
        models[name] = Model(member, tokenizer, (tokenizer.hf.eos_token_id,), f"sums:{name}")
    return build_ensemble("hosted", models, pivot)
