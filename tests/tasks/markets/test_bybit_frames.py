"""Websocket frames as rows: recorded ones, and the ways in which they go wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.markets.bybit_frames import Frames, topics_of
from tasks.markets.event_rows import event_rows

SYMBOLS = ("BTCUSDT", "ETHUSDT", "XRPUSDT")
BOOK = "orderbook.50.BTCUSDT"
Frame = dict[str, Any]


@pytest.fixture
def recorded(shared_data: Path) -> Callable[[str], list[str]]:
    """recorded(name): the lines of a recorded file of frames."""
    return lambda name: (shared_data / "wire" / "bybit_ws" / name).read_text().splitlines()


def published(shared_data: Path, name: str) -> str:
    """The frame of one of Bybit's published examples."""
    text = (shared_data / "wire" / "bybit_doc_examples" / f"Subscriptions__V5__Linear__{name}.txt").read_text()
    return text[text.index("= \n{") + 3 :]


def book(update: int, ts: int = 1_000, kind: str = "delta", bids: Any = (), asks: Any = ()) -> str:
    data = {"s": "BTCUSDT", "b": list(bids), "a": list(asks), "u": update, "seq": 1}
    return json.dumps({"topic": BOOK, "type": kind, "ts": ts + 5, "cts": ts, "data": data})


def snapshot(update: int, ts: int = 1_000) -> str:
    return book(update, ts, "snapshot", [["100", "1"], ["99", "2"]], [["101", "3"], ["102", "4"]])


def ticker(kind: str, ts: int, **data: str) -> str:
    return json.dumps(
        {"topic": "tickers.BTCUSDT", "type": kind, "cs": ts, "ts": ts, "data": {"symbol": "BTCUSDT", **data}}
    )


def without_nothing(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count and name != "frames"}


def test_every_symbol_has_its_four_topics() -> None:
    assert topics_of(("A", "B"))[3:6] == ["allLiquidation.A", "publicTrade.B", "orderbook.50.B"]


def test_the_recorded_spot_frames_give_their_trades_and_their_book(recorded) -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    rows = [row for text in recorded("raw_md_stream.testnet_spot.jsonl") for row in frames.read(text)]
    trades = [row for row in rows if row["kind"] == "trade"]
    assert [row["event_id"][-3:] for row in trades] == ["524", "528", "533", "534"]
    assert trades[0] == {
        "kind": "trade",
        "symbol": "BTCUSDT",
        "ts": 1789299660688000,
        "event_id": "2100000000188691524",
        "side": "sell",
        "price": 77140.5,
        "size": 0.00389,
    }
    books = [row for row in rows if row["kind"] == "book"]
    assert [int(row["event_id"]) for row in books] == list(range(3734358, 3734366))
    assert [(row["bid"], row["ask"]) for row in (books[0], books[-1])] == [(77140.5, 77140.6), (77140.1, 77140.7)]
    assert frames.book("BTCUSDT").bids[77140.1] == 0.127951
    # seven of orderbook.1, which is not asked for; the rejection of a symbol that is not listed
    assert without_nothing(frames.counts) == {"other": 7, "pongs": 1, "rejected": 1}
    assert list(frames.rejected.values()) == ["Invalid symbol :[orderbook.50.NOSUCHSYM]"]


def test_the_recorded_book_of_500_levels_has_no_gap_and_is_never_crossed(shared_data: Path) -> None:
    import zipfile

    frames = Frames(SYMBOLS, book_every_us=1)
    with zipfile.ZipFile(shared_data / "wire" / "bybit_ws" / "orderbook500_XRPUSDT_2024-12-01.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    rows = [row for text in lines for row in frames.read(text.replace("orderbook.500.", "orderbook.50."))]
    assert len(rows) == len(lines) == 50
    assert without_nothing(frames.counts) == {}
    assert all(row["bid"] < row["ask"] for row in rows)


def test_the_recorded_tickers_tell_funding_and_open_interest_only_when_they_change(recorded) -> None:
    frames = Frames(SYMBOLS)
    lines = recorded("tickers_stream.mainnet_linear.excerpt.jsonl")
    rows = [row for text in lines for row in frames.read(text)]
    assert [(row["kind"], row["symbol"]) for row in rows] == [
        ("funding", "BTCUSDT"),
        ("open_interest", "BTCUSDT"),
        ("funding", "ETHUSDT"),
        ("open_interest", "ETHUSDT"),
    ]
    assert (rows[0]["rate"], rows[0]["next_ts"]) == (-0.00007774, 1790784000000000)
    assert rows[1]["open_interest"] == 57118.511
    frames.connected()  # a snapshot that says nothing new tells nothing new
    assert [row for text in lines for row in frames.read(text)] == []


def test_a_ticker_is_its_snapshot_with_every_change_since() -> None:
    frames = Frames(SYMBOLS)
    first = ticker("snapshot", 1, fundingRate="0.0001", nextFundingTime="28800000", openInterest="5")
    assert len(frames.read(first)) == 2
    assert frames.read(ticker("delta", 2, markPrice="7")) == []
    (interest,) = frames.read(ticker("delta", 3, openInterest="6"))
    assert (interest["open_interest"], interest["ts"], interest["event_id"]) == (6.0, 3000, "3")
    (funding,) = frames.read(ticker("delta", 4, nextFundingTime="57600000"))
    assert (funding["rate"], funding["next_ts"]) == (0.0001, 57600000000)


def test_a_change_of_a_ticker_without_its_snapshot_is_not_used() -> None:
    frames = Frames(SYMBOLS)
    assert frames.read(ticker("delta", 1, openInterest="6")) == []
    assert frames.counts["repeated"] == 1


def test_the_side_of_a_liquidation_is_the_taker_s_and_not_the_position_s(shared_data: Path) -> None:
    (row,) = Frames(SYMBOLS).read(published(shared_data, "Liquidations"))
    assert row == {
        "kind": "liquidation",
        "symbol": "ETHUSDT",
        "ts": 1739502302929000,
        "event_id": "Sell 20000 0.04499",
        "side": "buy",  # a short was liquidated: it is bought back
        "price": 0.04499,
        "size": 20000.0,
    }


@pytest.mark.parametrize(("name", "kinds"), [("Trades", ["trade"]), ("Ticker", ["funding", "open_interest"])])
def test_the_published_examples_are_understood(shared_data: Path, name: str, kinds: list[str]) -> None:
    rows = Frames(SYMBOLS).read(published(shared_data, name))
    assert [row["kind"] for row in rows] == kinds
    assert event_rows(rows).num_rows == len(kinds)


def test_changes_set_and_take_out_levels() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    (row,) = frames.read(book(6, 2_000, bids=[["100", "0"], ["99.5", "7"]], asks=[["101", "1"]]))
    assert (row["bid"], row["ask"], row["bid_size"], row["ask_size"]) == (99.5, 101.0, 9.0, 5.0)
    assert (row["ts"], row["event_id"]) == (2_000_000, "6")


def test_a_book_is_told_at_most_once_in_each_slot_of_time() -> None:
    frames = Frames(SYMBOLS, book_every_us=100_000)
    texts = [snapshot(5, 1_000), book(6, 1_050), book(7, 1_099), book(8, 1_100), book(9, 1_350)]
    assert [row["event_id"] for text in texts for row in frames.read(text)] == ["5", "8", "9"]
    assert frames.book("BTCUSDT").update == 9


def test_a_missing_change_asks_once_for_a_snapshot_and_nothing_is_told_until_it_comes() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    assert [frames.read(book(update, 2_000)) for update in (7, 8)] == [[], []]
    assert frames.take_gaps() == [BOOK]
    assert frames.take_gaps() == []
    assert frames.book("BTCUSDT") is None
    assert [row["event_id"] for row in frames.read(snapshot(8, 3_000))] == ["8"]
    assert [row["event_id"] for row in frames.read(book(9, 4_000))] == ["9"]
    assert frames.counts["gaps"] == 1


def test_a_change_that_comes_twice_or_after_the_next_one_is_not_applied_again() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    frames.read(book(6, 2_000, bids=[["100", "8"]]))
    assert frames.read(book(6, 2_000, bids=[["100", "9"]])) == []
    assert frames.book("BTCUSDT").bids[100.0] == 8.0
    assert without_nothing(frames.counts) == {"repeated": 1}


def test_a_book_that_the_exchange_begins_anew_is_begun_anew() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    (row,) = frames.read(book(1, 2_000, "delta", [["50", "1"]], [["51", "1"]]))
    assert (row["bid"], row["ask"]) == (50.0, 51.0)
    assert frames.take_gaps() == []


def test_a_crossed_book_is_not_told_and_asked_for_again() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    assert frames.read(book(6, 2_000, bids=[["101.5", "1"]])) == []
    assert frames.take_gaps() == [BOOK]


def test_a_book_with_an_empty_side_tells_nothing() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    assert frames.read(book(5, 1_000, "snapshot", [["100", "1"]], [])) == []
    assert without_nothing(frames.counts) == {}


def broken(text: str) -> list[str]:
    """A good frame, each of its values in turn replaced by something that makes no sense, or taken out."""
    frame, texts = json.loads(text), []
    inner = frame["data"][0] if isinstance(frame["data"], list) else frame["data"]
    for owner, names in ((frame, ["data"]), (inner, list(inner))):
        for name in names:
            for wrong in ("nonsense", None, [], float("nan"), {"a": 1}):
                before, owner[name] = owner[name], wrong
                texts.append(json.dumps(frame))
                owner[name] = before
            before = owner.pop(name)
            texts.append(json.dumps(frame))
            owner[name] = before
    return texts


TRADE = {"T": 1, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "i": "20f4"}
GOOD = [
    snapshot(5),
    ticker("snapshot", 1, fundingRate="0.0001", nextFundingTime="28800000", openInterest="5"),
    json.dumps({"topic": "publicTrade.BTCUSDT", "ts": 1, "data": [TRADE]}),
    json.dumps({"topic": "allLiquidation.BTCUSDT", "ts": 1, "data": [TRADE]}),
]


@pytest.mark.parametrize("text", GOOD, ids=["book", "ticker", "trade", "liquidation"])
def test_a_frame_with_any_value_broken_never_raises_and_leaves_no_half_row(text: str) -> None:
    for wrong in broken(text):
        frames = Frames(SYMBOLS, book_every_us=1)
        told = event_rows(frames.read(wrong))
        assert told["event_id"].null_count == told["ts"].null_count == 0
        assert frames.read(text) or told.num_rows, wrong  # the stream goes on


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "3", "null", '{"op":1', "{}", '{"topic":7}', b"\xff\xfe", '"text"']
)
def test_what_is_no_frame_is_counted_logged_and_passed_over(text, caplog: pytest.LogCaptureFixture) -> None:
    frames = Frames(SYMBOLS)
    assert frames.read(text) == []
    assert frames.counts["malformed"] == 1
    assert "frame not understood" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"openInterest": "0"},
        {"openInterest": "-5"},
        {"openInterest": "1e200"},
        {"fundingRate": "1e40"},
        {"fundingRate": "-1.5"},
        {"openInterest": "nan"},
    ],
    ids=str,
)
def test_a_ticker_that_no_feature_can_hold_is_refused_and_the_next_one_is_read(wrong: dict[str, str]) -> None:
    frames = Frames(SYMBOLS)
    good = {"fundingRate": "0.0001", "nextFundingTime": "28800000", "openInterest": "5"}
    assert frames.read(ticker("snapshot", 1, **good | wrong)) == []
    assert len(frames.read(ticker("snapshot", 2, **good))) == 2
    assert frames.read(ticker("delta", 3, **wrong)) == []
    assert [row["kind"] for row in frames.read(ticker("delta", 4, openInterest="6"))] == ["open_interest"]
    assert without_nothing(frames.counts) == {"malformed": 2}


@pytest.mark.parametrize("wrong", ["1e200", "1e-200", "0", "-1"])
def test_prices_and_sizes_that_no_feature_can_hold_are_refused(wrong: str) -> None:
    for topic in ("publicTrade", "allLiquidation"):
        for name in ("v", "p"):
            frames = Frames(SYMBOLS)
            data = [{**TRADE, name: wrong}]
            assert frames.read(json.dumps({"topic": f"{topic}.BTCUSDT", "ts": 1, "data": data})) == []
            assert without_nothing(frames.counts) == {"malformed": 1}
    frames = Frames(SYMBOLS)
    assert frames.read(book(5, kind="snapshot", bids=[[wrong, "1"]], asks=[["1e14", "1"]])) == []
    assert without_nothing(frames.counts) == {"malformed": 1}


@pytest.mark.parametrize(
    "text",
    [
        snapshot(5).replace('"u": 5', '"u": 1e999'),
        snapshot(5).replace('"cts": 1000', '"cts": 1e999'),
        json.dumps({"topic": "publicTrade.BTCUSDT", "data": [TRADE]}).replace('"T": 1', '"T": 1e999'),
        json.dumps({"topic": "publicTrade.BTCUSDT", "data": [{**TRADE, "p": 7}]}).replace(
            '"p": 7', f'"p": 1{"0" * 999}'
        ),
        "[" * 200_000,
        json.dumps({"topic": "publicTrade.BTCUSDT", "data": [{**TRADE, "i": "\ud800"}]}),
        json.dumps({**json.loads(ticker("snapshot", 1, openInterest="5")), "cs": "\ud800"}),
    ],
    ids=["update", "book's time", "trade's time", "a long number", "depth", "trade's id", "ticker's id"],
)
def test_what_json_can_say_and_nothing_else_can_hold_is_counted_and_never_fatal(text: str) -> None:
    frames = Frames(SYMBOLS)
    assert frames.read(text) == []
    assert without_nothing(frames.counts) == {"malformed": 1}
    assert all(event_rows(frames.read(good)).num_rows for good in GOOD)


def test_a_malformed_change_leaves_the_book_as_it_was_and_shows_as_a_gap() -> None:
    frames = Frames(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    before = copy.deepcopy(frames.book("BTCUSDT"))
    assert frames.read(book(6, 2_000, bids=[["100", "9"], ["99", "lots"]])) == []
    assert frames.book("BTCUSDT") == before
    assert frames.read(book(7, 3_000)) == []
    assert (frames.counts["malformed"], frames.take_gaps()) == (1, [BOOK])


def test_an_acknowledgement_says_nothing_and_a_rejection_is_kept_by_its_topic() -> None:
    frames = Frames(SYMBOLS)
    assert frames.read('{"success":true,"ret_msg":"","conn_id":"c","req_id":"publicTrade.A","op":"subscribe"}') == []
    frames.read('{"success":false,"ret_msg":"Invalid symbol","conn_id":"c","req_id":"publicTrade.B","op":"subscribe"}')
    assert frames.rejected == {"publicTrade.B": "Invalid symbol"}
    assert without_nothing(frames.counts) == {"rejected": 1}
