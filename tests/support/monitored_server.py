"""A server under load with Prometheus watching, for the test of the dashboards and for their pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import yaml

from tests.support import client_load, prometheus
from tests.support.demo import CONFIG, ENSEMBLE
from tests.support.prometheus import Prometheus
from tests.support.serving import serving

FILTERED, PACKED = "filtered", "packed"


@dataclass(frozen=True)
class Observation:
    """A stretch of load: when it was, what clients measured of the demo ensemble, and who recorded it."""

    prometheus: Prometheus
    measured: client_load.Measured
    start: float
    end: float


@contextmanager
def observation(folder: Path, seconds: float) -> Iterator[Observation]:
    """Serve the demo and variants that filter or weigh members by the prompt; use them for so many seconds.

    Streams of the demo ensemble are all measured, and nobody else asks for it.
    """
    config = yaml.safe_load(CONFIG.read_text())
    for model in config["models"].values():
        model["source"] = str(CONFIG.parent / model["source"])
    members = config["ensembles"][ENSEMBLE]
    config["ensembles"][FILTERED] = members | {
        "filter_top": 2,
        "weights": {"lingvo": 0.5, "abacus": 0.2, "almanac": 0.3},
        "combine": "product",
    }
    config["ensembles"][PACKED] = members | {"weights": "packllm-opt"}
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(config))
    with (
        serving(path, folder / "server.log") as server,
        prometheus.running(server.url.removeprefix("http://"), folder) as recorder,
    ):
        recorder.wait("tutti_build_info")
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        with client, ThreadPoolExecutor() as pool:
            start = time.time()
            others = pool.submit(client_load.mixed, client, [FILTERED, PACKED, "lingvo"], seconds)
            measured = client_load.streams(client, ENSEMBLE, seconds, 2)
            others.result()
            end = time.time()
        time.sleep(2.5)  # two scrapes, so that all of it is recorded
        yield Observation(recorder, measured, start, end)
