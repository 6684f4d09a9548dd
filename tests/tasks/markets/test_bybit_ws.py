"""The websocket connection against a local server: it reconnects after every kind of loss and logs it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tasks.errors import ForbiddenError, RefusedError
from tasks.markets.bybit_frames import FrameReader, topics_for
from tasks.markets.bybit_ws import LIVE_URL, Listener, Timing
from tests.exchange import COME_BACK, DISCONNECT, FALL_SILENT, QUICK_TIMING, FakeExchange

TOPICS = ("publicTrade.A", "publicTrade.B")


def trade(number: int, symbol: str = "A") -> str:
    """A frame with one trade whose id is ``number``."""
    data = [{"T": 1_000 + number, "s": symbol, "S": "Buy", "v": "1", "p": "2", "i": str(number)}]
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": 1, "data": data})


async def received_until(listener: Listener, is_last: Callable[[list[str | None]], bool]) -> list[str | None]:
    """The received trade ids, and None for each connection, in order, until ``is_last`` of them is true."""
    received: list[str | None] = []
    frames = listener.frames()
    async with asyncio.timeout(10):
        async for frame in frames:
            if frame is None:
                received.append(None)
            else:
                received += [trade["i"] for trade in json.loads(frame).get("data", [])]
            if is_last(received):
                break
    await frames.aclose()
    return received


def last_is(trade_id: str) -> Callable[[list[str | None]], bool]:
    """A condition for received_until: the last entry is this trade id."""
    return lambda received: bool(received) and received[-1] == trade_id


def test_each_topic_is_subscribed_to_by_itself_and_frames_arrive_as_they_were_sent() -> None:
    with FakeExchange([trade(1), trade(2, "B")], TOPICS) as exchange:
        assert asyncio.run(received_until(Listener(exchange.url, TOPICS, QUICK_TIMING), last_is("2"))) == [
            None,
            "1",
            "2",
        ]
        requests = [(request["op"], request["args"], request["req_id"]) for request in exchange.requests]
    assert requests[:2] == [("subscribe", [topic], topic) for topic in TOPICS]


def test_a_lost_connection_is_opened_again_with_its_subscriptions() -> None:
    with FakeExchange([trade(1), DISCONNECT, trade(2), DISCONNECT, DISCONNECT, trade(3)], TOPICS) as exchange:
        listener = Listener(exchange.url, TOPICS, QUICK_TIMING)
        received = asyncio.run(received_until(listener, last_is("3")))
    assert received == [None, "1", None, "2", None, None, "3"]
    assert listener.reconnects == 3
    assert exchange.connections == 4
    assert [request["op"] for request in exchange.requests if request["op"] != "ping"] == ["subscribe"] * 4 * len(
        TOPICS
    )


def test_a_silent_connection_is_replaced() -> None:
    with FakeExchange([trade(1), FALL_SILENT, trade(2), COME_BACK, trade(3)], TOPICS) as exchange:
        listener = Listener(exchange.url, TOPICS, QUICK_TIMING)
        assert asyncio.run(received_until(listener, last_is("3"))) == [None, "1", None, "3"]
    assert listener.reconnects == 1


def test_the_heartbeat_keeps_a_connection_without_data_open() -> None:
    async def listen_without_data(exchange: FakeExchange) -> tuple[int, int]:
        listener = Listener(exchange.url, TOPICS, QUICK_TIMING)
        frames = listener.frames()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * QUICK_TIMING.silence_s):
                async for _ in frames:
                    pass
        await frames.aclose()
        return listener.reconnects, exchange.connections

    with FakeExchange([], TOPICS) as exchange:
        assert asyncio.run(listen_without_data(exchange)) == (0, 1)
        assert exchange.pings >= 5  # 0.9 s with a heartbeat every 0.05 s


def test_a_topics_snapshot_is_requested_by_unsubscribing_and_subscribing() -> None:
    async def resubscribe(listener: Listener) -> None:
        frames = listener.frames()
        assert await anext(frames) is None
        await listener.resubscribe(["publicTrade.B"])
        while json.loads(await anext(frames) or "{}").get("op") != "unsubscribe":
            pass
        await anext(frames)
        await frames.aclose()

    with FakeExchange([], TOPICS) as exchange:
        asyncio.run(resubscribe(Listener(exchange.url, TOPICS, QUICK_TIMING)))
        requests = [(request["op"], *request["args"]) for request in exchange.requests]
    assert requests[2:4] == [("unsubscribe", "publicTrade.B"), ("subscribe", "publicTrade.B")]


def test_repeated_resubscriptions_of_a_topic_wait_longer_each_time() -> None:
    timing = Timing(heartbeat_s=9, silence_s=9, open_s=5, first_wait_s=0.1, longest_wait_s=0.4, settled_s=5)

    async def resubscribe_often(exchange: FakeExchange, listener: Listener) -> tuple[int, int]:
        frames = listener.frames()
        assert await anext(frames) is None
        for _ in range(60):
            await listener.resubscribe(["publicTrade.B"])
            await asyncio.sleep(0.01)
        unsubscribed = sum(request["op"] == "unsubscribe" for request in exchange.requests)
        await listener.resubscribe(["publicTrade.A"])  # a topic without resubscriptions does not wait
        await asyncio.sleep(0.1)
        first_topic = [request for request in exchange.requests if request["args"] == ["publicTrade.A"]]
        await frames.aclose()
        return unsubscribed, sum(request["op"] == "unsubscribe" for request in first_topic)

    with FakeExchange([], TOPICS) as exchange:
        repeated, once = asyncio.run(resubscribe_often(exchange, Listener(exchange.url, TOPICS, timing)))
    assert 2 <= repeated <= 5  # of 60 calls in 0.6 s: the waits are up to 0.1, 0.2 and 0.4 s
    assert once == 1


@pytest.mark.parametrize(("settled_s", "expected"), [(9.0, [1, 2, 3]), (0.0, [1, 1, 1])])
def test_waits_start_again_at_the_shortest_only_after_data_over_a_settled_connection(
    settled_s: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = replace(QUICK_TIMING, settled_s=settled_s)
    failure_counts: list[int] = []
    monkeypatch.setattr(Timing, "wait_s", lambda _, failures: failure_counts.append(failures) or 0.01)
    with FakeExchange([trade(1), DISCONNECT, trade(2), DISCONNECT, trade(3), DISCONNECT, trade(4)], TOPICS) as exchange:
        asyncio.run(received_until(Listener(exchange.url, TOPICS, timing), last_is("4")))
    assert failure_counts == expected


def test_answers_without_data_do_not_reset_the_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    failure_counts: list[int] = []
    monkeypatch.setattr(Timing, "wait_s", lambda _, failures: failure_counts.append(failures) or 0.01)
    with FakeExchange([DISCONNECT, DISCONNECT, DISCONNECT, trade(4)], TOPICS) as exchange:
        asyncio.run(received_until(Listener(exchange.url, TOPICS, replace(QUICK_TIMING, settled_s=0.0)), last_is("4")))
    assert failure_counts == [1, 2, 3]


def test_resubscribing_without_a_connection_does_nothing() -> None:
    async def resubscribe_unconnected(listener: Listener) -> None:
        await listener.resubscribe(["publicTrade.A"])  # before any connection
        await received_until(listener, last_is("1"))
        await listener.resubscribe(["publicTrade.A"])

    with FakeExchange([trade(1)], TOPICS) as exchange:
        asyncio.run(resubscribe_unconnected(Listener(exchange.url, TOPICS, QUICK_TIMING)))
        assert "unsubscribe" not in [request["op"] for request in exchange.requests]


def test_an_unreachable_server_is_tried_again_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}"

    async def count_reconnects() -> int:
        listener = Listener(url, TOPICS, QUICK_TIMING)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(listener.frames())
        return listener.reconnects

    assert asyncio.run(count_reconnects()) >= 3
    assert f"{url}: ConnectionRefusedError" in caplog.text


def test_a_server_that_forbids_the_address_is_tried_only_once_more() -> None:
    requested_paths = []

    class Forbid(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requested_paths.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Forbid)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        listener = Listener(f"ws://127.0.0.1:{server.server_port}/x", TOPICS, QUICK_TIMING)
        with pytest.raises(ForbiddenError, match=r"HTTP 403.*does not serve this address or region"):
            asyncio.run(received_until(listener, last_is("never")))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert requested_paths == ["/x", "/x"]


@pytest.mark.parametrize("url", ["https://stream.bybit.com", "stream.bybit.com", "ws://"])
def test_an_address_of_no_websocket_is_refused_at_once(url: str) -> None:
    with pytest.raises(RefusedError, match="is not a websocket address"):
        asyncio.run(received_until(Listener(url, TOPICS, QUICK_TIMING), last_is("never")))


def test_more_topics_than_one_connection_may_have_are_refused() -> None:
    with pytest.raises(RefusedError, match="1001 topics are more than the 21000 characters"):
        Listener("ws://x", ["publicTrade.1000SATSUSDT"] * 1001)


def test_waits_double_up_to_the_longest_and_are_random() -> None:
    timing = Timing(first_wait_s=1, longest_wait_s=60)
    for failures, longest in ((1, 1), (2, 2), (6, 32), (7, 60), (10_000, 60)):
        waits = {timing.wait_s(failures) for _ in range(20)}
        assert len(waits) > 1
        assert all(longest / 2 <= wait <= longest for wait in waits)


@pytest.mark.live
def test_the_live_websocket_sends_frames_that_are_read() -> None:
    frames = FrameReader(("BTCUSDT",))
    kinds = set()

    async def listen() -> None:
        stream = Listener(LIVE_URL, topics_for(("BTCUSDT",))).frames()
        async with asyncio.timeout(60):
            async for frame in stream:
                kinds.update(row["kind"] for row in frames.read(frame or '{"op":"pong"}'))
                if kinds >= {"trade", "book", "funding", "open_interest"}:
                    break
        await stream.aclose()

    asyncio.run(listen())
    assert frames.counts["malformed"] == frames.counts["gaps"] == frames.counts["rejected"] == 0
