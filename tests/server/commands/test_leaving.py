"""SIGTERM while models load: the process ends soon, whatever its main thread is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.forks import Fork
from tests.support.model_folders import REPOSITORY

SCRIPT = """
import hashlib, signal, time
from concurrent.futures import ThreadPoolExecutor
from server.commands.leaving import ended_by_sigterm, leave

def threads():
    with ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 120)

def one_call():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

signal.signal(signal.SIGTERM, leave)
with ended_by_sigterm(1.0):
    print("loading", flush=True)
    {work}()
"""
DEAF = """
import sys, time
from pathlib import Path
import server.http.app
from server.commands.serve import serve
from server.settings import read_settings

class Deaf:
    def __del__(self):
        print("no exception leaves this", flush=True)
        time.sleep(1)

def create_app(*arguments, create=server.http.app.create_app):
    Deaf()
    return create(*arguments)

server.http.app.create_app = create_app
serve(read_settings(Path(sys.argv[1])), print)
"""
ENVIRON = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("work", ["threads", "one_call"])
def test_neither_threads_nor_a_call_that_takes_minutes_keep_the_process(work):
    """A clean exit would wait for the threads; the handler would not run before the call returns."""
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("host", ["inline", "process"])
def test_a_server_that_loads_ends_and_leaves_no_process(site, host):
    environment = ENVIRON | {"TUTTI_MODELS__ADA__HOST": host, "TUTTI_MODELS__BEN__HOST": host}
    with Fork("-m", "server", "serve", site / "tutti.yaml", "--port", "0", environment=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "loading ben" in line:
                break
        time.sleep(0.3)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
        assert psutil.wait_procs(started, timeout=10)[1] == []


def test_a_signal_whose_exit_is_lost_between_loading_and_serving_ends_the_server_too(site):
    """Garbage is collected there, and objects of the regex package have a `__del__`."""
    with Fork("-c", DEAF, site / "tutti.yaml", environment=ENVIRON | {"TUTTI_SERVER__PORT": "0"}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "no exception leaves this" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
