"""A connection to Bybit's public websocket that comes back: heartbeat, silence, reconnection, subscriptions."""

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
MOST_CHARACTERS = 21_000  # of all topics of a connection, says Bybit
PING = json.dumps({"op": "ping"})


@dataclass(frozen=True)
class Timing:
    """Seconds: between heartbeats, of silence after which a connection counts as dead, to open one, and of the waits
    between attempts, which double from the first to the longest, each drawn between half and the whole of it; and for
    how long something must have gone well before the waits begin anew."""

    heartbeat_s: float = 20.0
    silence_s: float = 30.0
    open_s: float = 10.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    settled_s: float = 30.0

    def wait_s(self, failures: int) -> float:
        """How long to wait after so many failed attempts in a row."""
        return min(self.first_wait_s * 2 ** min(failures - 1, 30), self.longest_wait_s) * random.uniform(0.5, 1.0)


class Listener:
    """Frames of some topics for as long as one listens. ``reconnects``: how often it was lost or refused."""

    def __init__(self, url: str, topics: Sequence[str], timing: Timing | None = None) -> None:
        if sum(map(len, topics)) > MOST_CHARACTERS:
            raise RefusedError(
                f"{len(topics)} topics are more than the {MOST_CHARACTERS} characters Bybit allows a connection; "
                "stream a smaller universe, or parts of it by themselves"
            )
        self.url, self.topics, self.timing = url, tuple(topics), timing or Timing()
        self.reconnects = 0
        self._socket: ClientConnection | None = None
        self._due: dict[str, tuple[float, int]] = {}  # when to ask for a topic's snapshot, the how manieth time
        self._asked: dict[str, tuple[float, int]] = {}  # when that was last done

    async def frames(self) -> AsyncGenerator[str | bytes | None]:
        """Every frame as it comes, and None each time that a connection has been made and the topics asked for: what
        was sent between two connections is lost.

        Raises RefusedError for a URL that is none, ForbiddenError when the connection is refused twice in a row with
        HTTP 401 or 403. Every other failure is waited out, the longer the more there were since data last came over
        a connection that had been up for ``settled_s``.
        """
        failures = forbidden = 0
        while True:
            try:
                # the heartbeat is Bybit's own; to inflate frames of a few hundred bytes costs more than it saves
                async with connect(
                    self.url, open_timeout=self.timing.open_s, ping_interval=None, compression=None, close_timeout=1
                ) as self._socket:
                    made, forbidden = time.monotonic(), 0
                    self._due.clear()
                    for topic in self.topics:
                        await self._ask(self._socket, "subscribe", topic)
                    heartbeat = asyncio.create_task(self._beat(self._socket))
                    try:
                        yield None
                        while True:
                            async with asyncio.timeout(self.timing.silence_s):
                                frame = await self._socket.recv()
                            if failures and time.monotonic() - made >= self.timing.settled_s and _is_data(frame):
                                failures = 0
                            yield frame
                    finally:
                        heartbeat.cancel()
            except InvalidURI as exc:
                raise RefusedError(f"{self.url} is no websocket address; give ws://… or wss://…") from exc
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
                logger.warning("%s: %s; connecting again in %.1f s", self.url, _why(exc), wait)
                await asyncio.sleep(wait)

    async def snapshot_again(self, topics: Sequence[str] = ()) -> None:
        """Leaves and joins these topics, upon which Bybit sends their snapshots; a new connection does so anyway.

        At once the first time, and after waits that double when a topic soon asks again; those that are due by now are
        asked for in any call.
        """
        now = time.monotonic()
        for topic in topics:
            last, times = self._asked.get(topic, (0.0, 0))
            times = times if now - last < self.timing.settled_s else 0
            self._due.setdefault(topic, (now + (self.timing.wait_s(times) if times else 0.0), times + 1))
        for topic in [topic for topic, (when, _) in self._due.items() if when <= now]:
            self._asked[topic] = now, self._due.pop(topic)[1]
            if self._socket is not None:
                with contextlib.suppress(ConnectionClosed):
                    await self._ask(self._socket, "unsubscribe", topic)
                    await self._ask(self._socket, "subscribe", topic)

    async def _ask(self, socket: ClientConnection, verb: str, topic: str) -> None:
        """One topic a request, named by it: so a rejection says which, and takes no other topic with it."""
        await socket.send(json.dumps({"req_id": topic, "op": verb, "args": [topic]}))

    async def _beat(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await asyncio.sleep(self.timing.heartbeat_s)
                await socket.send(PING)


def _is_data(frame: str | bytes) -> bool:
    return (b'"topic"' in frame) if isinstance(frame, bytes) else ('"topic"' in frame)


def _why(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else "nothing came, not even an answer to the heartbeat"
