"""The websocket connection against a local server: it comes back from every kind of loss, and says so."""

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
from tasks.markets.bybit_frames import Frames, topics_of
from tasks.markets.bybit_ws import LIVE_URL, Listener, Timing
from tests.exchange import BACK, CLOSE, SILENCE, Exchange

TOPICS = ("publicTrade.A", "publicTrade.B")
QUICK = Timing(heartbeat_s=0.05, silence_s=0.3, open_s=5, first_wait_s=0.01, longest_wait_s=0.05)


def trade(number: int, symbol: str = "A") -> str:
    data = [{"T": 1_000 + number, "s": symbol, "S": "Buy", "v": "1", "p": "2", "i": str(number)}]
    return json.dumps({"topic": f"publicTrade.{symbol}", "type": "snapshot", "ts": 1, "data": data})


async def heard(listener: Listener, until: Callable[[list[str | None]], bool]) -> list[str | None]:
    """What came up to the frame after which ``until`` is true: ids of trades, and None for each connection."""
    came: list[str | None] = []
    frames = listener.frames()
    async with asyncio.timeout(10):
        async for frame in frames:
            if frame is None:
                came.append(None)
            elif "data" in (body := json.loads(frame)):
                came.append(body["data"][0]["i"])
            if until(came):
                break
    await frames.aclose()
    return came


def last_is(trade_id: str) -> Callable[[list[str | None]], bool]:
    return lambda came: bool(came) and came[-1] == trade_id


def test_every_topic_is_asked_for_by_itself_and_frames_come_as_they_were_sent() -> None:
    with Exchange([trade(1), trade(2, "B")], TOPICS) as exchange:
        assert asyncio.run(heard(Listener(exchange.url, TOPICS, QUICK), last_is("2"))) == [None, "1", "2"]
        asked = [(one["op"], one["args"], one["req_id"]) for one in exchange.asked]
    assert asked[:2] == [("subscribe", [topic], topic) for topic in TOPICS]


def test_a_broken_connection_is_made_anew_and_subscribed_again() -> None:
    with Exchange([trade(1), CLOSE, trade(2), CLOSE, CLOSE, trade(3)], TOPICS) as exchange:
        listener = Listener(exchange.url, TOPICS, QUICK)
        came = asyncio.run(heard(listener, last_is("3")))
    assert came == [None, "1", None, "2", None, None, "3"]
    assert (listener.reconnects, exchange.connections) == (3, 4)
    assert [one["op"] for one in exchange.asked if one["op"] != "ping"] == ["subscribe"] * 8


def test_a_connection_that_has_fallen_silent_is_left() -> None:
    with Exchange([trade(1), SILENCE, trade(2), BACK, trade(3)], TOPICS) as exchange:
        listener = Listener(exchange.url, TOPICS, QUICK)
        assert asyncio.run(heard(listener, last_is("3"))) == [None, "1", None, "3"]
    assert listener.reconnects == 1


def test_the_heartbeat_keeps_a_quiet_connection() -> None:
    async def quiet(exchange: Exchange) -> tuple[int, int]:
        listener = Listener(exchange.url, TOPICS, QUICK)
        frames = listener.frames()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * QUICK.silence_s):
                async for _ in frames:
                    pass
        await frames.aclose()
        return listener.reconnects, exchange.connections

    with Exchange([], TOPICS) as exchange:
        assert asyncio.run(quiet(exchange)) == (0, 1)
        assert exchange.pings >= 5


def test_a_topic_s_snapshot_is_had_again_by_leaving_and_joining_it() -> None:
    async def again(listener: Listener) -> None:
        frames = listener.frames()
        assert await anext(frames) is None
        await listener.snapshot_again(["publicTrade.B"])
        while json.loads(await anext(frames) or "{}").get("op") != "unsubscribe":
            pass
        await anext(frames)
        await frames.aclose()

    with Exchange([], TOPICS) as exchange:
        asyncio.run(again(Listener(exchange.url, TOPICS, QUICK)))
        asked = [(one["op"], *one["args"]) for one in exchange.asked]
    assert asked[2:4] == [("unsubscribe", "publicTrade.B"), ("subscribe", "publicTrade.B")]


def test_a_topic_whose_snapshots_do_not_help_is_asked_for_ever_more_seldom() -> None:
    timing = Timing(heartbeat_s=9, silence_s=9, open_s=5, first_wait_s=0.1, longest_wait_s=0.4, settled_s=5)

    async def crossed(exchange: Exchange, listener: Listener) -> list[int]:
        frames, counts = listener.frames(), []
        assert await anext(frames) is None
        for _ in range(60):
            await listener.snapshot_again(["publicTrade.B"])
            await asyncio.sleep(0.01)
        counts.append(sum(one["op"] == "unsubscribe" for one in exchange.asked))
        await listener.snapshot_again(["publicTrade.A"])  # the other one waits for nothing
        await asyncio.sleep(0.1)
        counts.append(sum(one["op"] == "unsubscribe" and one["args"] == ["publicTrade.A"] for one in exchange.asked))
        await frames.aclose()
        return counts

    with Exchange([], TOPICS) as exchange:
        often, other = asyncio.run(crossed(exchange, Listener(exchange.url, TOPICS, timing)))
    assert 2 <= often <= 5  # of 60
    assert other == 1


@pytest.mark.parametrize(("settled_s", "waits"), [(9.0, [1, 2, 3]), (0.0, [1, 1, 1])])
def test_waits_begin_anew_only_after_data_over_a_settled_connection(
    settled_s: float, waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing, asked = replace(QUICK, settled_s=settled_s), []
    monkeypatch.setattr(Timing, "wait_s", lambda _, failures: asked.append(failures) or 0.01)
    with Exchange([trade(1), CLOSE, trade(2), CLOSE, trade(3), CLOSE, trade(4)], TOPICS) as exchange:
        asyncio.run(heard(Listener(exchange.url, TOPICS, timing), last_is("4")))
    assert asked == waits


def test_answers_without_data_do_not_make_a_connection_a_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Timing, "wait_s", lambda _, failures: asked.append(failures) or 0.01)
    with Exchange([CLOSE, CLOSE, CLOSE, trade(4)], TOPICS) as exchange:
        asyncio.run(heard(Listener(exchange.url, TOPICS, replace(QUICK, settled_s=0.0)), last_is("4")))
    assert asked == [1, 2, 3]


def test_asking_for_a_snapshot_of_a_connection_that_is_gone_does_nothing() -> None:
    async def gone(listener: Listener) -> None:
        await listener.snapshot_again(["publicTrade.A"])  # before any connection
        await heard(listener, last_is("1"))
        await listener.snapshot_again(["publicTrade.A"])

    with Exchange([trade(1)], TOPICS) as exchange:
        asyncio.run(gone(Listener(exchange.url, TOPICS, QUICK)))
        assert "unsubscribe" not in [one["op"] for one in exchange.asked]


def test_a_server_that_is_not_there_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"

    async def waited() -> int:
        listener = Listener(url, TOPICS, QUICK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(listener.frames())
        return listener.reconnects

    assert asyncio.run(waited()) >= 3
    assert f"{url}: ConnectionRefusedError" in caplog.text


def test_a_server_that_refuses_the_address_is_asked_only_once_more() -> None:
    asked = []

    class Forbids(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Forbids)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        listener = Listener(f"ws://127.0.0.1:{server.server_port}/x", TOPICS, QUICK)
        with pytest.raises(ForbiddenError, match=r"HTTP 403.*does not serve this address or region"):
            asyncio.run(heard(listener, last_is("never")))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/x", "/x"]


@pytest.mark.parametrize("url", ["https://stream.bybit.com", "stream.bybit.com", "ws://"])
def test_what_is_no_websocket_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(RefusedError, match="is no websocket address"):
        asyncio.run(heard(Listener(url, TOPICS, QUICK), last_is("never")))


def test_more_topics_than_one_connection_may_have_are_refused() -> None:
    with pytest.raises(RefusedError, match="1001 topics are more than the 21000 characters"):
        Listener("ws://x", ["publicTrade.1000SATSUSDT"] * 1001)


def test_waits_double_up_to_the_longest_and_are_drawn() -> None:
    timing = Timing(first_wait_s=1, longest_wait_s=60)
    for failures, most in ((1, 1), (2, 2), (6, 32), (7, 60), (10_000, 60)):
        drawn = {timing.wait_s(failures) for _ in range(20)}
        assert len(drawn) > 1
        assert all(most / 2 <= wait <= most for wait in drawn)


@pytest.mark.live
def test_the_live_websocket_speaks_as_we_know() -> None:
    frames, kinds = Frames(("BTCUSDT",)), set()

    async def listen() -> None:
        stream = Listener(LIVE_URL, topics_of(("BTCUSDT",))).frames()
        async with asyncio.timeout(60):
            async for frame in stream:
                kinds.update(row["kind"] for row in frames.read(frame or '{"op":"pong"}'))
                if kinds >= {"trade", "book", "funding", "open_interest"}:
                    break
        await stream.aclose()

    asyncio.run(listen())
    assert frames.counts["malformed"] == frames.counts["gaps"] == frames.counts["rejected"] == 0
