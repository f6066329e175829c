"""Start of vLLM's workers, in this process or in their own: settings that vLLM changes, and the workers' log."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models import registry
from vllm.platforms import current_platform

# What vLLM sets for the workers it is about to start, and leaves behind in this process.
FOR_WORKERS = (
    "OMP_NUM_THREADS",
    "OMP_NUM_THREADS_SET_BY_VLLM",
    "PYTHONWARNINGS",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
)


@contextmanager
def starting() -> Iterator[None]:
    """Context for building an engine: a single worker runs in this process, whose settings are then restored."""
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


@contextmanager
def reading_classes_here() -> Iterator[None]:
    """Context in which vLLM looks at a model's class in this process, where that starts no CUDA.

    vLLM starts a process for it, which imports vLLM itself, for each architecture that it has not met.
    """
    run = registry._run_in_subprocess
    if current_platform.is_cpu():
        registry._run_in_subprocess = lambda look: look()
    try:
        yield
    finally:
        registry._run_in_subprocess = run


@contextmanager
def told_why(config: VllmConfig) -> Iterator[None]:
    """Context for starting workers in their own processes: raise a worker's error, which vLLM only logs."""
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
