"""A connection to Bybit's public websocket with heartbeat, silence timeout, reconnection and subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from tasks.errors import ForbiddenError, RefusedError

logger = logging.getLogger(__name__)

LIVE_URL = "wss://stream.bybit.com/v5/public/linear"
MAX_TOPIC_CHARACTERS = 21_000  # Bybit's limit of the total length of all topics of one connection
PING = json.dumps({"op": "ping"})


@dataclass(frozen=True)
class Timing:
    """Times of a connection, in seconds.

    heartbeat_s      between two heartbeats
    silence_s        a connection without a frame for as long counts as lost
    open_s           the time limit for opening a connection
    first_wait_s     the upper limit of the wait after the first failure; it doubles with every further failure
    longest_wait_s   the greatest upper limit of a wait
    settled_s        the count of failures is reset when data arrives over a connection that has been open as long
    """

    heartbeat_s: float = 20.0
    silence_s: float = 30.0
    open_s: float = 10.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    settled_s: float = 30.0

    def wait_s(self, failures: int) -> float:
        """A random wait after ``failures`` (at least 1) consecutive failures, in [limit / 2, limit] seconds."""
        limit_s = min(self.first_wait_s * 2 ** min(failures - 1, 30), self.longest_wait_s)
        return limit_s * random.uniform(0.5, 1.0)


class Listener:
    """Receives the frames of ``topics``. ``reconnects`` counts the connections that were lost or refused.

    Raises RefusedError if the topics are too long for one connection.
    """

    def __init__(self, url: str, topics: Sequence[str], timing: Timing | None = None) -> None:
        if sum(map(len, topics)) > MAX_TOPIC_CHARACTERS:
            raise RefusedError(
                f"{len(topics)} topics are more than the {MAX_TOPIC_CHARACTERS} characters that Bybit allows per "
                "connection; stream a smaller universe, or its parts in separate streams"
            )
        self.url = url
        self.topics = tuple(topics)
        self.timing = timing or Timing()
        self.reconnects = 0
        self._socket: ClientConnection | None = None
        # topic → (monotonic time in seconds, number of consecutive resubscriptions)
        self._due_resubscriptions: dict[str, tuple[float, int]] = {}
        self._last_resubscriptions: dict[str, tuple[float, int]] = {}

    async def frames(self) -> AsyncGenerator[str | bytes | None]:
        """Yields every frame as it arrives, and None each time a connection was opened and all topics subscribed to.

        Frames that Bybit sends between two connections are lost. After a failure the listener connects again; the waits
        grow with every failure until data arrives over a connection that has been open for ``settled_s``.

        Raises RefusedError for an invalid URL, ForbiddenError if the connection is refused twice in a row with HTTP 401
        or 403.
        """
        failures = 0
        n_forbidden = 0
        while True:
            try:
                # the heartbeat is Bybit's own; compressing frames of a few hundred bytes costs more than it saves
                async with connect(
                    self.url, open_timeout=self.timing.open_s, ping_interval=None, compression=None, close_timeout=1
                ) as self._socket:
                    opened_s = time.monotonic()
                    n_forbidden = 0
                    self._due_resubscriptions.clear()
                    for topic in self.topics:
                        await self._request(self._socket, "subscribe", topic)
                    heartbeat = asyncio.create_task(self._send_heartbeats(self._socket))
                    try:
                        yield None
                        while True:
                            async with asyncio.timeout(self.timing.silence_s):
                                frame = await self._socket.recv()
                            is_settled = time.monotonic() - opened_s >= self.timing.settled_s
                            if failures and is_settled and _is_data(frame):
                                failures = 0
                            yield frame
                    finally:
                        heartbeat.cancel()
            except InvalidURI as exc:
                raise RefusedError(f"{self.url} is not a websocket address; give ws://… or wss://…") from exc
            except (OSError, WebSocketException) as exc:  # TimeoutError is an OSError
                is_forbidden = isinstance(exc, InvalidStatus) and exc.response.status_code in (401, 403)
                n_forbidden = n_forbidden + 1 if is_forbidden else 0
                if n_forbidden > 1:
                    raise ForbiddenError(
                        f"{self.url}: {exc}: Bybit does not serve this address or region, or limits it; wait ten "
                        "minutes, or stream from an allowed region"
                    ) from exc
                failures += 1
                self.reconnects += 1
                wait_s = self.timing.longest_wait_s if is_forbidden else self.timing.wait_s(failures)
                logger.warning("%s: %s; connecting again in %.1f s", self.url, _error_text(exc), wait_s)
                await asyncio.sleep(wait_s)

    async def resubscribe(self, topics: Sequence[str] = ()) -> None:
        """Unsubscribes from these topics and subscribes again, so that Bybit sends their snapshots.

        A topic is resubscribed immediately, unless its last resubscription was less than ``settled_s`` ago. It then
        waits for a later call of this method, and the waits double. Every call also resubscribes to the topics whose
        wait is over. A new connection clears the waits, because it receives all snapshots.
        """
        now_s = time.monotonic()
        for topic in topics:
            last_s, n_consecutive = self._last_resubscriptions.get(topic, (0.0, 0))
            if now_s - last_s >= self.timing.settled_s:
                n_consecutive = 0
            wait_s = self.timing.wait_s(n_consecutive) if n_consecutive else 0.0
            self._due_resubscriptions.setdefault(topic, (now_s + wait_s, n_consecutive + 1))
        due_topics = [topic for topic, (due_s, _) in self._due_resubscriptions.items() if due_s <= now_s]
        for topic in due_topics:
            _, n_consecutive = self._due_resubscriptions.pop(topic)
            self._last_resubscriptions[topic] = (now_s, n_consecutive)
            if self._socket is not None:
                with contextlib.suppress(ConnectionClosed):
                    await self._request(self._socket, "unsubscribe", topic)
                    await self._request(self._socket, "subscribe", topic)

    async def _request(self, socket: ClientConnection, operation: str, topic: str) -> None:
        """Sends a request for one topic. Its id is the topic, so that a rejection names and affects only this topic."""
        await socket.send(json.dumps({"req_id": topic, "op": operation, "args": [topic]}))

    async def _send_heartbeats(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self.timing.heartbeat_s)
                await socket.send(PING)


def _is_data(frame: str | bytes) -> bool:
    """Whether a frame has data of a topic, and is not an answer to a request."""
    return (b'"topic"' in frame) if isinstance(frame, bytes) else ('"topic"' in frame)


def _error_text(exc: Exception) -> str:
    """The error as text for log messages; a silence timeout is an error without a message."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else "no frame arrived, not even an answer to the heartbeat"
