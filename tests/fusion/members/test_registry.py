"""An engine comes from plain values that survive a trip as JSON."""

import json
from dataclasses import asdict

import pytest

from alignment.errors import ConfigError
from fusion.core import Advance
from fusion.members.registry import EngineSpec, load_engine
from tests.support.random_models import build, error_of, plain_logprobs, run


def test_a_spec_that_travelled_as_json_builds_the_engine(tmp_path):
    build("llama").save_pretrained(tmp_path)
    spec = EngineSpec("transformers", {"source": str(tmp_path), "cache_tokens": 64, "max_context": 32})
    engine = load_engine(EngineSpec(**json.loads(json.dumps(asdict(spec)))))
    assert engine.capacity.context == 32
    assert error_of(run(engine, Advance(1, 0, [4, 5]))[1], plain_logprobs(build("llama"), [4, 5])[-1:]) < 1e-4
    engine.shutdown()


def test_what_keeps_an_engine_from_loading_is_said_by_its_loader(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_engine(EngineSpec("transformers", {"source": str(tmp_path / "none")}))
