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
MAX_TOPIC_CHARACTERS = 21_000  # Bybit's limit for all topics of one connection together
PING = json.dumps({"op": "ping"})


@dataclass(frozen=True)
class Timing:
    """Times of a connection, in seconds.

    ``heartbeat_s`` between heartbeats; ``silence_s`` without a frame after which a connection counts as lost;
    ``open_s`` to open one. The waits between attempts double from ``first_wait_s`` up to ``longest_wait_s``, each drawn
    between half and the whole of that; they start at the first again after ``settled_s`` without a failure.
    """

    heartbeat_s: float = 20.0
    silence_s: float = 30.0
    open_s: float = 10.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    settled_s: float = 30.0

    def wait_s(self, failures: int) -> float:
        """How long to wait after ``failures`` failed attempts in a row."""
        return min(self.first_wait_s * 2 ** min(failures - 1, 30), self.longest_wait_s) * random.uniform(0.5, 1.0)


class Listener:
    """Receives the frames of ``topics``. ``reconnects``: how often the connection was lost or refused.

    Raises RefusedError for more topics than Bybit allows a connection.
    """

    def __init__(self, url: str, topics: Sequence[str], timing: Timing | None = None) -> None:
        if sum(map(len, topics)) > MAX_TOPIC_CHARACTERS:
            raise RefusedError(
                f"{len(topics)} topics are more than the {MAX_TOPIC_CHARACTERS} characters Bybit allows a connection; "
                "stream a smaller universe, or parts of it by themselves"
            )
        self.url = url
        self.topics = tuple(topics)
        self.timing = timing or Timing()
        self.reconnects = 0
        self._socket: ClientConnection | None = None
        # by topic: when it is resubscribed, or was last, and how often in a row
        self._due_resubscriptions: dict[str, tuple[float, int]] = {}
        self._last_resubscriptions: dict[str, tuple[float, int]] = {}

    async def frames(self) -> AsyncGenerator[str | bytes | None]:
        """Every frame as it arrives, and None each time a connection is open and the topics are subscribed to: frames
        that Bybit sent between two connections are lost.

        Raises RefusedError for an invalid URL, ForbiddenError when the connection is refused twice in a row with HTTP
        401 or 403. After any other failure it connects again; the waits grow with every failure until data arrives over
        a connection that has been open for ``settled_s``.
        """
        failures = 0
        forbidden = 0
        while True:
            try:
                # the heartbeat is Bybit's own; compressing frames of a few hundred bytes costs more than it saves
                async with connect(
                    self.url, open_timeout=self.timing.open_s, ping_interval=None, compression=None, close_timeout=1
                ) as self._socket:
                    opened_s = time.monotonic()
                    forbidden = 0
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
                refused = isinstance(exc, InvalidStatus) and exc.response.status_code in (401, 403)
                forbidden = forbidden + 1 if refused else 0
                if forbidden > 1:
                    raise ForbiddenError(
                        f"{self.url}: {exc}: Bybit does not serve this address or region, or limits it; wait ten "
                        "minutes, or stream from an allowed region"
                    ) from exc
                failures += 1
                self.reconnects += 1
                wait = self.timing.longest_wait_s if refused else self.timing.wait_s(failures)
                logger.warning("%s: %s; connecting again in %.1f s", self.url, _error_text(exc), wait)
                await asyncio.sleep(wait)

    async def resubscribe(self, topics: Sequence[str] = ()) -> None:
        """Unsubscribes from these topics and subscribes again, so that Bybit sends their snapshots.

        The first time this happens at once; when a topic needs it again within ``settled_s``, it waits, and the waits
        double. Every call also resubscribes to the topics whose wait is over. A new connection clears the waits, since
        it receives all snapshots anyway.
        """
        now_s = time.monotonic()
        for topic in topics:
            last_s, times = self._last_resubscriptions.get(topic, (0.0, 0))
            times = times if now_s - last_s < self.timing.settled_s else 0
            wait_s = self.timing.wait_s(times) if times else 0.0
            self._due_resubscriptions.setdefault(topic, (now_s + wait_s, times + 1))
        for topic in [topic for topic, (due_s, _) in self._due_resubscriptions.items() if due_s <= now_s]:
            self._last_resubscriptions[topic] = now_s, self._due_resubscriptions.pop(topic)[1]
            if self._socket is not None:
                with contextlib.suppress(ConnectionClosed):
                    await self._request(self._socket, "unsubscribe", topic)
                    await self._request(self._socket, "subscribe", topic)

    async def _request(self, socket: ClientConnection, operation: str, topic: str) -> None:
        """Sends one request for one topic, with the topic as its id: a rejection then names it and affects no other."""
        await socket.send(json.dumps({"req_id": topic, "op": operation, "args": [topic]}))

    async def _send_heartbeats(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self.timing.heartbeat_s)
                await socket.send(PING)


def _is_data(frame: str | bytes) -> bool:
    return (b'"topic"' in frame) if isinstance(frame, bytes) else ('"topic"' in frame)


def _error_text(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else "no frame arrived, not even an answer to the heartbeat"
