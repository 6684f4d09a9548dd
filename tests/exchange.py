"""A Bybit of our own on 127.0.0.1: a websocket that plays a script of frames and faults, and REST beside it.

Every step is a frame, sent if its topic is subscribed, or one of the faults below. What is played while nobody is
connected, or while the exchange is silent, is lost to the websocket; REST knows every trade that has been played, and
what it is given by symbol: ``klines`` as on the wire, ``settled`` rates of funding (ms, rate).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

CLOSE = "close"  # the connection breaks off
AWAY = "away"  # it does, and what follows is played while nobody is connected, until BACK
BACK = "back"
SILENCE = "silence"  # nothing is sent or answered any more, until the client connects anew
SNAPSHOT = "snapshot"  # waits until the client has asked for a snapshot again
NOW_MS = 4_000_000_000_000  # by its own clock every bar that it has is closed
PACE_S = 0.003  # between frames: what REST knows and the websocket has not yet delivered stays little


class Exchange:
    """Plays ``script`` to one client at a time, once that has subscribed to all of ``topics``.

    ``snapshots`` by topic are sent upon a subscription; a frame of type snapshot takes the place of its topic's, and
    ``books`` gives the snapshots that a book's later frames (by their text) leave behind. Enter it to start it.
    """

    def __init__(
        self,
        script: Sequence[str],
        topics: Sequence[str],
        rejected: Sequence[str] = (),
        books: dict[str, str] | None = None,
    ) -> None:
        self.script, self.topics, self.rejected = list(script), set(topics), set(rejected)
        self.books, self.snapshots = books or {}, {}
        self.trades: dict[str, list[dict[str, str]]] = {}
        self.klines: dict[str, list[list[str]]] = {}
        self.settled: dict[str, list[tuple[int, str]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.connections = self.pings = 0
        self.done, self.rest_down = threading.Event(), False
        self._silent = False
        self._left: set[str] = set()
        self._again = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def __enter__(self) -> Exchange:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),))
        self._thread.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._rest())
        self._rest_thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._rest_thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._http.shutdown()
        for thread in (self._thread, self._rest_thread):
            thread.join()
        self._http.server_close()
        self._loop.close()

    @property
    def url(self) -> str:
        """Of the websocket."""
        return f"ws://127.0.0.1:{self._port}/v5/public/linear"

    @property
    def rest_url(self) -> str:
        """Of REST."""
        return f"http://127.0.0.1:{self._http.server_port}"

    async def _serve(self, ready: threading.Event) -> None:
        async with serve(self._client, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()

    async def _client(self, socket: ServerConnection) -> None:
        self.connections += 1
        self._silent, joined = False, set()
        playing: asyncio.Task[None] | None = None
        try:
            async for text in socket:
                if self._silent:
                    continue
                request = json.loads(text)
                self.asked.append(request)
                if request["op"] == "ping":
                    self.pings += 1
                    await socket.send(json.dumps({"success": True, "ret_msg": "pong", "op": "ping"}))
                    continue
                await self._answer(socket, request, joined)
                if playing is None and len(joined) + len(self.rejected) >= len(self.topics):
                    playing = asyncio.create_task(self._play(socket, joined))
        except ConnectionClosed:
            pass
        finally:
            if playing is not None:
                playing.cancel()

    async def _answer(self, socket: ServerConnection, request: dict[str, Any], joined: set[str]) -> None:
        """Acknowledges a subscription, and sends the snapshot of its topic; or rejects it."""
        (topic,) = request["args"]
        accepted = topic not in self.rejected
        message = "" if accepted else f"Invalid symbol :[{topic}]"
        body = {"success": accepted, "ret_msg": message, "req_id": request["req_id"], "op": request["op"]}
        await socket.send(json.dumps(body))
        if request["op"] == "unsubscribe":
            joined.discard(topic)
            self._left.add(topic)
            return
        if accepted:
            joined.add(topic)
            if topic in self.snapshots:
                await socket.send(self.snapshots[topic])
            if topic in self._left:
                self._left.discard(topic)
                self._again.set()

    async def _play(self, socket: ServerConnection, joined: set[str]) -> None:
        while self.script:
            step = self.script.pop(0)
            if step == CLOSE:
                await socket.close(1011)
                return
            if step == SILENCE:
                self._silent = True
                while self.script[0] != BACK:
                    self._know(self.script.pop(0))
                return
            if step == AWAY:
                while self.script[0] != BACK:
                    self._know(self.script.pop(0))
                await socket.close(1011)
                return
            if step == SNAPSHOT:
                await asyncio.wait_for(self._again.wait(), 10)
                self._again.clear()
            elif step != BACK:
                topic = self._know(step)
                if topic is None or topic in joined:
                    await socket.send(step)
                    await asyncio.sleep(PACE_S)
        self.done.set()

    def _know(self, text: str) -> str | None:
        """The topic of a frame; REST and later subscribers know from here on what it says."""
        try:
            frame = json.loads(text)
            topic, data = frame["topic"], frame["data"]
        except (ValueError, KeyError, TypeError):
            return None
        if frame.get("type") == "snapshot" and not isinstance(data, list):
            self.snapshots[topic] = text
        if text in self.books:
            self.snapshots[topic] = self.books[text]
        if topic.startswith("publicTrade."):
            known = self.trades.setdefault(topic.partition(".")[2], [])
            ids = {trade["execId"] for trade in known}
            known += [
                {"execId": one["i"], "symbol": one["s"], "price": one["p"], "size": one["v"], "side": one["S"]}
                | {"time": str(one["T"]), "isBlockTrade": False}
                for one in data
                if one.get("i", "") not in {*ids, ""}
            ]
        return topic

    @property
    def _answers(self) -> dict[str, Callable[[dict[str, str]], list[Any]]]:
        """What REST says, newest first, by path."""

        def of_span(rows: list[Any], stamp: Callable[[Any], int], first: str, last: str) -> list[Any]:
            return sorted((row for row in rows if int(first) <= stamp(row) <= int(last)), key=stamp, reverse=True)

        return {
            "recent-trade": lambda asked: sorted(
                self.trades.get(asked["symbol"], []), key=lambda one: -int(one["time"])
            ),
            "kline": lambda asked: of_span(
                self.klines.get(asked["symbol"], []), lambda row: int(row[0]), asked["start"], asked["end"]
            ),
            "funding/history": lambda asked: [
                {"symbol": asked["symbol"], "fundingRate": rate, "fundingRateTimestamp": str(ms)}
                for ms, rate in of_span(
                    self.settled.get(asked["symbol"], []), lambda row: row[0], asked["startTime"], asked["endTime"]
                )
            ],
        }

    def _rest(self) -> type[BaseHTTPRequestHandler]:
        exchange = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                asked = {name: value for name, (value,) in parse_qs(url.query).items()}
                answer = exchange._answers[url.path.removeprefix("/v5/market/")](asked)
                result = {"category": "linear", "list": answer}
                body = json.dumps({"retCode": 0, "retMsg": "OK", "result": result, "time": NOW_MS}).encode()
                self.send_response(503 if exchange.rest_down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
