"""Where models are placed: the environment of their processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from alignment.errors import ConfigError
from fusion.assembly.members import environment


def model(*gpus: int, host: str = "process", **variables: str) -> SimpleNamespace:
    return SimpleNamespace(host=host, worker=SimpleNamespace(gpus=gpus or None, environment=variables))


@pytest.mark.parametrize(("seen", "expected"), [(None, "1"), ("", "1"), ("4,5", "5"), ("GPU-a, GPU-b", "GPU-b")])
def test_numbers_of_gpus_are_those_of_the_server(monkeypatch, seen, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert environment(model(1)) == {"CUDA_VISIBLE_DEVICES": expected}
    assert environment(model(1, OMP_NUM_THREADS="2"))["OMP_NUM_THREADS"] == "2"
    assert environment(model()) == environment(model(1, host="inline")) == {}


def test_a_gpu_that_the_server_was_not_given_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match=r"names GPU 2, but this server sees 2 \(CUDA_VISIBLE_DEVICES=4,5\)"):
        environment(model(1, 2))
