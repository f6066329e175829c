"""A worker as an actor anywhere on a Ray cluster.

Ray finds the node, reserves resources and starts the process. Messages between member and worker go over a
connection of their own: a call of an actor costs a millisecond, and a round would need two for every member.
"""

from __future__ import annotations

import hmac
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from alignment.errors import ConfigError
from fusion.members.hosts.channel import Channel
from fusion.members.hosts.remote import Launch
from fusion.members.hosts.worker import serve

CONNECTING = 30.0  # seconds that the two ends have to find each other
SECRET_BYTES = 32

_joining = threading.Lock()


class Actor:
    """Runs in the actor's process. Ray calls the methods one after the other."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._listener: socket.socket | None = None

    def listen(self) -> tuple[str, int]:
        """Return the address for the member to connect to."""
        import ray

        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family)
        return address, self._listener.getsockname()[1]

    def serve(self) -> None:
        """Take the connection that knows the secret, and serve it to its end."""
        assert self._listener is not None, "listen first"
        with self._listener as listener:
            listener.settimeout(CONNECTING)
            while True:
                connection, _ = listener.accept()
                connection.settimeout(CONNECTING)
                if hmac.compare_digest(_read(connection, SECRET_BYTES), self._secret):
                    break
                connection.close()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = Channel(connection)
        try:
            serve(channel)
        finally:
            channel.close()


class RayWorker:
    """An actor that has been placed, and the connection to it."""

    what = "Ray actor"

    def __init__(self, actor: Any, running: Any, channel: Channel) -> None:
        self._actor = actor
        self._running = running  # of `Actor.serve`: done when the actor is
        self.channel = channel

    def ended(self) -> str | None:
        """Return how the actor ended, as the rest of a sentence; None while it lives."""
        import ray

        done, _ = ray.wait([self._running], timeout=0)
        if not done:
            return None
        try:
            ray.get(self._running)
        except ray.exceptions.RayError as error:
            return f"ended: {_first_line(error)}"
        return "ended"

    def end(self, seconds: float) -> str:
        """Wait `seconds` for the actor to end by itself, then kill it; return how it ended."""
        import ray

        deadline = time.monotonic() + seconds
        try:
            while (how := self.ended()) is None and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            self.channel.close()
            ray.kill(self._actor)
        return how or "did not end and was killed"


def ray_actor(
    *,
    address: str,
    num_cpus: float,
    num_gpus: float,
    resources: Mapping[str, float],
    environment: Mapping[str, str],
    placement_seconds: float,
) -> Launch:
    """Return a `Launch` for workers on the Ray cluster at `address`, on a node with the resources asked for."""
    import ray

    options = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": dict(resources),
        "runtime_env": {"env_vars": dict(environment)},
        "max_restarts": 0,  # the member starts another one, which has to load again anyhow
    }

    def launch(wanted: Callable[[], bool]) -> RayWorker:
        _connect(address)
        secret = secrets.token_bytes(SECRET_BYTES)
        actor: Any = ray.remote(Actor).options(**options).remote(secret)  # typed as what it wraps
        try:
            where = _placed(actor.listen.remote(), wanted, placement_seconds, options)
            running = actor.serve.remote()
            return RayWorker(actor, running, _reached(where, secret))
        except BaseException:
            ray.kill(actor)
            raise

    return launch


def _connect(address: str) -> None:
    """Join the cluster, once per process."""
    import ray

    with _joining:
        if ray.is_initialized():
            return
        outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        threading.Thread(target=_join, args=(address, outcome), name="tutti-ray", daemon=True).start()
        if (error := outcome.get()) is not None:
            raise ConfigError(
                f"the Ray cluster at {address!r} cannot be joined ({_first_line(error)}); "
                "start one with `ray start --head`, or give the address of one"
            ) from error


def _join(address: str, outcome: queue.SimpleQueue[Exception | None]) -> None:
    """Run in a thread that never ends: if it ended, Linux would end the cluster that Ray may have started here."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own sends no usage reports
    try:
        ray.init(address=address, include_dashboard=False if address == "local" else None)
    except Exception as error:
        outcome.put(error)
        return
    outcome.put(None)
    threading.Event().wait()


def _placed(listening: Any, wanted: Callable[[], bool], seconds: float, options: Mapping[str, Any]) -> Any:
    """Return the address that the actor listens on, once it runs."""
    import ray

    deadline = time.monotonic() + seconds
    while not ray.wait([listening], timeout=0.25)[0]:
        if not wanted():
            raise ConfigError("it was told to stop")
        if time.monotonic() > deadline:
            asked = {name: options[name] for name in ("num_cpus", "num_gpus", "resources")}
            raise ConfigError(
                f"no node of the Ray cluster had room for {asked} within {seconds:g} seconds; ask for less of "
                "its resources, or wait longer with placement_seconds"
            )
    try:
        return ray.get(listening)
    except ray.exceptions.RayError as error:
        raise ConfigError(f"the Ray actor did not start: {_first_line(error)}") from error


def _reached(where: tuple[str, int], secret: bytes) -> Channel:
    """Return a connection to the actor that listens there."""
    with ExitStack() as undo:
        try:
            connection = undo.enter_context(socket.create_connection(where, CONNECTING))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(secret)
            channel = Channel(connection)
        except OSError as error:
            raise ConfigError(f"the Ray actor on {where[0]} cannot be reached: {error}") from error
        undo.pop_all()
    return channel


def _read(connection: socket.socket, size: int) -> bytes:
    """Read `size` bytes, or fewer where the peer closes the connection."""
    data = b""
    try:
        while len(data) < size and (more := connection.recv(size - len(data))):
            data += more
    except OSError:
        pass
    return data


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200].rstrip(".")
