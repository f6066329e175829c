"""vLLM's workers, in this process or in processes of their own: what is added to them, and how they start.

Like `fusion.members.vllm_internals`, which is this file's only user here, tried with vLLM 0.32. vLLM imports it in
each worker.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.envs import disable_envs_cache
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import get_visible_memory_node
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler

from fusion.members.best import best_of_row

# What vLLM sets for the workers it is about to start, and leaves behind in this process.
FOR_WORKERS = (
    "OMP_NUM_THREADS",
    "OMP_NUM_THREADS_SET_BY_VLLM",
    "PYTHONWARNINGS",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
)


class SessionWorker:
    """Mixed into vLLM's workers (`worker_extension_cls`), in whatever process they are."""

    device: torch.device
    model_runner: Any

    def score_extensions(self, request_ids: list[str], count: int) -> None:
        """Have the V1 runner return the `count` best for all tokens that are about to extend these requests."""
        for request_id in request_ids:
            self.model_runner.num_prompt_logprobs[request_id] = count
            self.model_runner.requests[request_id].in_progress_prompt_logprobs_cpu = None

    def adapt_to_cpu(self) -> None:
        """What the V1 runner does not do on a CPU, or not as fast."""
        if self.device.type != "cpu":
            return
        runner = self.model_runner
        runner.requests = _SeededRequests(runner.requests)
        runner.sampler.gather_logprobs = _gather
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            # Where a stage's input arrives is made by a warm-up, which a CPU that does not compile leaves out.
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=self.device
            )


def _gather(logprobs: torch.Tensor, count: int, token_ids: torch.Tensor) -> LogprobsTensors:
    """As the sampler's `gather_logprobs`, in a quarter of its time, but for the ranks, which nobody here reads."""
    rows = logprobs.numpy()
    if not count or not np.isfinite(rows.max()):
        return Sampler.gather_logprobs(logprobs, count, token_ids)
    best = np.stack([best_of_row(row, count) for row in rows])
    ids = torch.cat([token_ids[:, None].int(), torch.from_numpy(best)], dim=1)
    told = torch.cat(
        [logprobs.gather(1, token_ids[:, None]), torch.from_numpy(np.take_along_axis(rows, best, 1))], 1
    )
    return LogprobsTensors(ids, told, torch.zeros(len(ids), dtype=torch.int32))


class _SeededRequests(dict[str, Any]):
    """The V1 runner's requests, with generators that can take draws back; those of a CPU have no offset."""

    def __setitem__(self, request_id: str, request: Any) -> None:
        if request.generator is not None:
            seed = request.generator.initial_seed()
            request.generator = _RewoundGenerator()
            request.generator.manual_seed(seed)
        super().__setitem__(request_id, request)


class _RewoundGenerator(torch.Generator):
    """vLLM takes draws back before the first that counts, and never later: that is where the seed begins."""

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        return self.manual_seed(self.initial_seed())


@contextmanager
def starting() -> Iterator[None]:
    """While an engine is built: a single worker runs in this process, which stays as it was otherwise."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    before = {name: os.environ.get(name) for name in FOR_WORKERS}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        yield
    finally:
        torch.set_num_threads = set_threads  # the CPU worker replaces it by a warning
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def share_cores(config: VllmConfig) -> None:
    """Let several workers of a CPU start where there is not a NUMA node for each: they are not bound to cores."""
    if current_platform.is_cpu() and len(get_visible_memory_node()) < config.parallel_config.local_world_size:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        disable_envs_cache()  # with an engine in this process already, vLLM would not look again


@contextmanager
def told_why(config: VllmConfig) -> Iterator[None]:
    """While workers start in processes of their own: raise what went wrong in one, which vLLM only logs."""
    if config.parallel_config.distributed_executor_backend != "mp" or config.logging_config.configure_logging:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        settings, reason = Path(folder, "logging.json"), Path(folder, "reason")
        handler = {"class": f"{__name__}.{WorkerLog.__name__}", "path": str(reason)}
        settings.write_text(
            json.dumps(
                {
                    "version": 1,
                    "disable_existing_loggers": False,
                    "handlers": {"worker": handler},
                    "loggers": {"vllm": {"handlers": ["worker"], "level": "ERROR", "propagate": False}},
                }
            )
        )
        config.logging_config = replace(
            config.logging_config, configure_logging=True, pylogging_config_file=str(settings)
        )
        try:
            yield
        except Exception as error:
            if reason.is_file():
                raise RuntimeError(reason.read_text()) from error
            raise


class WorkerLog(logging.StreamHandler):  # type: ignore[type-arg]
    """The log of a worker process: errors go where the server's go, but why it did not start goes to a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; of the workers that did not start the first has the reason, others fail after it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.msg != "WorkerProc failed to start.":
            super().emit(record)
            return
        with open(self.path, "a") as file:
            if not file.tell():
                file.write(str(error) or repr(error))
