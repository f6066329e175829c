"""`tutti serve`: take the port, load everything, answer until a signal, finish what is in progress."""

from __future__ import annotations

import gc
import ipaddress
import logging
import math
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import FrameType

import uvicorn

from alignment.errors import ConfigError
from fusion.core import Trouble
from server.commands.leaving import ended_by_sigterm, leave
from server.http.middleware.drain import Lifecycle
from server.settings import ServerSettings, Settings
from server.telemetry.logs import set_up_log

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Seconds that an idle connection stays open: longer than the 60 of the usual load balancers and client pools, so
that none of them sends a request on a connection that is being closed."""
FORCED_SECONDS = 10.0
"""Seconds after the second signal in which all must have ended: an engine that hangs would be waited for."""
ENDING_SECONDS = 20.0
"""Seconds after the last request in which all must have ended: workers have ten of them."""
UNWELL_SECONDS = 60.0
"""Seconds for which only a restart would help, after which the server ends."""
TICKS_BETWEEN_LOOKS = 50  # of uvicorn's, a tenth of a second each
CLOSING_SECONDS = 1  # for the last errors to reach clients that were cut off


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve in the foreground until SIGTERM or SIGINT. `on_ready` is given the URL when requests are answered.

    The port is taken before the models are loaded, so that a port in use is known at once, but connections
    are accepted only afterwards: a client that gets an answer from /health can send requests.

    Raises:
        ConfigError: the port cannot be had, or something of the configuration cannot be loaded.
    """
    from server.http.app import create_app
    from server.http.connection import Connection
    from server.loading import build

    options = settings.server
    with _bound(options) as listener:
        set_up_log(settings.server.log_level, settings.server.log_format)
        signal.signal(signal.SIGTERM, leave)
        with ended_by_sigterm():
            runtime = build(settings)
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through it for garbage takes a third of a second each time
            app = create_app(runtime.ensembles, runtime.fuser, settings.server)
            config = uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                root_path=options.root_path,
                ssl_certfile=options.tls_certificate,
                ssl_keyfile=options.tls_key,
            )
            scheme = "https" if options.tls_certificate else "http"
            server = _Server(
                config,
                app.state.lifecycle,
                app.state.unwell,
                runtime.fuser.end,
                options.shutdown_seconds,
                lambda: on_ready(_url(listener, scheme)),
            )
        with suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it is done
            server.run(sockets=[listener])
        if server.unwell_since is not None:
            raise SystemExit(1)


class _Server(uvicorn.Server):
    """Uvicorn, with a call when it begins to accept connections, and an end that load balancers can follow.

    At the first signal it stops taking requests but goes on listening, so that /ready and whatever is still sent
    here get an answer, until the requests in progress are over or `seconds` have passed; then what is unfinished
    ends with an error. The second signal ends it at once, whatever an engine does. It ends by itself where only a
    restart helps, so that whoever supervises it starts it anew.

    Attributes:
        unwell_since: when it was found that only a restart helps.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        unwell: Callable[[], Trouble | None],
        end_answers: Callable[[], None],
        seconds: float,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.lifecycle = lifecycle
        self.unwell = unwell
        self.end_answers = end_answers
        self.seconds = seconds
        self.on_ready = on_ready
        self.unwell_since: float | None = None
        self._deadline: float | None = None
        self._forced_at = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._captured_signals.append(sig)
        if self._deadline is not None:
            self._force(FORCED_SECONDS)
            self._deadline = 0.0
            return
        self._deadline = monotonic() + self.seconds
        self.lifecycle.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None:
            left = self._deadline - monotonic()
            if left <= 0 or self.lifecycle.in_progress == 0:
                self.end_answers()
                self.config.timeout_graceful_shutdown = CLOSING_SECONDS
                self.should_exit = True
                self._force(ENDING_SECONDS)
        elif counter % TICKS_BETWEEN_LOOKS == 0:
            self._look()
        return await super().on_tick(counter)

    def _look(self) -> None:
        """End where only a restart has helped for UNWELL_SECONDS."""
        found = self.unwell()
        if found is None or not found.lasting:
            self.unwell_since = None
            return
        self.unwell_since = self.unwell_since or monotonic()
        if monotonic() - self.unwell_since >= UNWELL_SECONDS:
            log.critical("%s, and only a restart helps: the server ends", found.reason)
            self.lifecycle.draining = True
            self._deadline = 0.0
            self._force(FORCED_SECONDS)

    def _force(self, seconds: float) -> None:
        """End the process in so many seconds, if it has not ended by then and was not told to end sooner."""
        at = monotonic() + seconds
        if at < self._forced_at:
            self._forced_at = at
            timer = threading.Timer(seconds, os._exit, (1,))
            timer.daemon = True
            timer.start()


def _bound(options: ServerSettings) -> socket.socket:
    """A bound socket that does not listen yet. The file of a server that was killed is taken over.

    Raises:
        ConfigError: the address cannot be had.
    """
    path = options.unix_socket
    where, setting = (path, "unix_socket") if path else (f"{options.host}:{options.port}", "--host or --port")
    try:
        if path is None:
            found = socket.getaddrinfo(
                options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, *_, address = found[0]
        else:
            family, address = socket.AF_UNIX, path  # type: ignore[assignment]
            if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"Cannot listen on {where} ({reason}): set another {setting}.") from None
    return listener


def _url(listener: socket.socket, scheme: str = "http") -> str:
    """The URL to reach the server at from this machine."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"{scheme}://localhost:{port}"
    return f"{scheme}://[{host}]:{port}" if address.version == 6 else f"{scheme}://{host}:{port}"
