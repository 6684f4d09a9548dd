"""A fake Bybit on 127.0.0.1: a websocket that plays a script of frames and faults, and a REST service.

A step of the script is a frame or one of the faults below. A frame is sent if the client has subscribed to its topic.
Frames that are played while no client is connected, or while the exchange is silent, are lost for the websocket. REST
returns every trade that has been played. It also returns the rows that a test has put into ``klines`` (symbol → rows as
on the wire) and ``funding_rates`` (symbol → (settlement in ms, rate)).
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

from tasks.live.job import StreamReport
from tasks.live.stream import MarketStream
from tasks.markets.bybit_ws import Timing

DISCONNECT = "disconnect"  # closes the connection
GO_AWAY = "go away"  # plays the steps up to COME_BACK for REST only, then closes the connection
COME_BACK = "come back"  # ends GO_AWAY and FALL_SILENT
FALL_SILENT = "fall silent"  # plays the steps up to COME_BACK for REST only; silent until the client connects again
AWAIT_SNAPSHOT_REQUEST = "await snapshot request"  # waits until the client has resubscribed to a topic
NOW_MS = 4_000_000_000_000  # the time of every REST answer (year 2096), at which every bar has closed
QUICK_TIMING = Timing(heartbeat_s=0.05, silence_s=0.3, open_s=5, first_wait_s=0.01, longest_wait_s=0.05)
PACE_S = 0.003  # seconds between frames, so that REST is only slightly ahead of the websocket


class FakeExchange:
    """Plays ``script`` to one client at a time, once that client has subscribed to all of ``topics``.

    A subscription is answered with the topic's latest snapshot: the last frame of type snapshot, or the snapshot after
    the last book change, which ``books`` maps from the change's text. Subscriptions to ``rejected`` topics are refused.
    ``requests`` are the client's websocket requests; ``done`` is set at the end of the script. Use the object as a
    context manager.
    """

    def __init__(
        self,
        script: Sequence[str],
        topics: Sequence[str],
        rejected: Sequence[str] = (),
        books: dict[str, str] | None = None,
    ) -> None:
        self.script = list(script)
        self.topics = set(topics)
        self.rejected = set(rejected)
        self.books = books or {}
        self.snapshots: dict[str, str] = {}
        self.trades: dict[str, list[dict[str, str]]] = {}
        self.klines: dict[str, list[list[str]]] = {}
        self.funding_rates: dict[str, list[tuple[int, str]]] = {}
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.pings = 0
        self.done = threading.Event()
        self.is_rest_down = False
        self._is_silent = False
        self._left_topics: set[str] = set()
        self._topic_rejoined = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def __enter__(self) -> FakeExchange:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),))
        self._thread.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._rest_handler())
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
        """The address of the websocket."""
        return f"ws://127.0.0.1:{self._port}/v5/public/linear"

    @property
    def rest_url(self) -> str:
        """The address of the REST service."""
        return f"http://127.0.0.1:{self._http.server_port}"

    async def _serve(self, ready: threading.Event) -> None:
        async with serve(self._serve_client, "127.0.0.1", 0, ping_interval=None, close_timeout=0.1) as server:
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()

    async def _serve_client(self, socket: ServerConnection) -> None:
        self.connections += 1
        self._is_silent = False
        joined: set[str] = set()
        playing: asyncio.Task[None] | None = None
        try:
            async for text in socket:
                if self._is_silent:
                    continue
                request = json.loads(text)
                self.requests.append(request)
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
        """Acknowledges a subscription and sends the topic's snapshot, or rejects the subscription."""
        (topic,) = request["args"]
        accepted = topic not in self.rejected
        message = "" if accepted else f"Invalid symbol :[{topic}]"
        body = {"success": accepted, "ret_msg": message, "req_id": request["req_id"], "op": request["op"]}
        await socket.send(json.dumps(body))
        if request["op"] == "unsubscribe":
            joined.discard(topic)
            self._left_topics.add(topic)
            return
        if accepted:
            joined.add(topic)
            if topic in self.snapshots:
                await socket.send(self.snapshots[topic])
            if topic in self._left_topics:
                self._left_topics.discard(topic)
                self._topic_rejoined.set()

    async def _play(self, socket: ServerConnection, joined: set[str]) -> None:
        while self.script:
            step = self.script.pop(0)
            if step == DISCONNECT:
                await socket.close(1011)
                return
            if step == FALL_SILENT:
                self._is_silent = True
                while self.script[0] != COME_BACK:
                    self.publish(self.script.pop(0))
                return
            if step == GO_AWAY:
                while self.script[0] != COME_BACK:
                    self.publish(self.script.pop(0))
                await socket.close(1011)
                return
            if step == AWAIT_SNAPSHOT_REQUEST:
                await asyncio.wait_for(self._topic_rejoined.wait(), 10)
                self._topic_rejoined.clear()
            elif step != COME_BACK:
                topic = self.publish(step)
                if topic is None or topic in joined:
                    await socket.send(step)
                    await asyncio.sleep(PACE_S)
        self.done.set()

    def publish(self, text: str) -> str | None:
        """Adds the frame to the data for REST and new subscribers; returns its topic, None for text without a topic."""
        try:
            frame = json.loads(text)
            topic = frame["topic"]
            data = frame["data"]
        except (ValueError, KeyError, TypeError):
            return None
        if frame.get("type") == "snapshot" and not isinstance(data, list):
            self.snapshots[topic] = text
        if text in self.books:
            self.snapshots[topic] = self.books[text]
        if topic.startswith("publicTrade."):
            trades = self.trades.setdefault(topic.partition(".")[2], [])
            ids = {trade["execId"] for trade in trades}
            trades += [
                {
                    "execId": trade["i"],
                    "symbol": trade["s"],
                    "price": trade["p"],
                    "size": trade["v"],
                    "side": trade["S"],
                }
                | {"time": str(trade["T"]), "isBlockTrade": False}
                for trade in data
                if trade.get("i", "") not in {*ids, ""}
            ]
        return topic

    @property
    def _endpoints(self) -> dict[str, Callable[[dict[str, str]], list[Any]]]:
        """Path → function from the query to the rows of the REST answer, newest first."""

        def rows_between(rows: list[Any], row_ms: Callable[[Any], int], first_ms: str, last_ms: str) -> list[Any]:
            requested = (row for row in rows if int(first_ms) <= row_ms(row) <= int(last_ms))
            return sorted(requested, key=row_ms, reverse=True)

        return {
            "recent-trade": lambda query: sorted(
                self.trades.get(query["symbol"], []), key=lambda trade: -int(trade["time"])
            ),
            "kline": lambda query: rows_between(
                self.klines.get(query["symbol"], []), lambda row: int(row[0]), query["start"], query["end"]
            ),
            "funding/history": lambda query: [
                {"symbol": query["symbol"], "fundingRate": rate, "fundingRateTimestamp": str(ms)}
                for ms, rate in rows_between(
                    self.funding_rates.get(query["symbol"], []),
                    lambda row: row[0],
                    query["startTime"],
                    query["endTime"],
                )
            ],
        }

    def _rest_handler(self) -> type[BaseHTTPRequestHandler]:
        exchange = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {name: value for name, (value,) in parse_qs(url.query).items()}
                rows = exchange._endpoints[url.path.removeprefix("/v5/market/")](query)
                result = {"category": "linear", "list": rows}
                body = json.dumps({"retCode": 0, "retMsg": "OK", "result": result, "time": NOW_MS}).encode()
                self.send_response(503 if exchange.is_rest_down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


async def run_until_script_ends(stream: MarketStream, exchange: FakeExchange) -> StreamReport:
    """Runs the stream until the script has ended, then stops it and returns its report.

    Before it stops the stream, it waits until no frame has arrived for 0.2 s and no close of bars is due or running.
    """
    stop = asyncio.Event()
    running = asyncio.create_task(stream.run(stop))
    counts = stream.frames.counts
    bar_closer = stream.bar_closer
    frames_before = -1
    quiet_polls = 0
    async with asyncio.timeout(60):
        while not running.done() and quiet_polls < 4:  # 4 polls of 0.05 s
            await asyncio.sleep(0.05)
            frames = counts["frames"] + counts["malformed"] - counts["pongs"]
            is_closing = bar_closer is not None and (
                bar_closer._closing is not None or bar_closer.forecaster.due() is not None
            )
            is_quiet = exchange.done.is_set() and frames == frames_before and not is_closing
            quiet_polls = quiet_polls + 1 if is_quiet else 0
            frames_before = frames
    stop.set()
    return await running
