"""Websocket frames read into rows (TGN-25): recorded frames, and frames that are wrong in every way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.markets.bybit_frames import FrameReader, topics_for
from tasks.markets.event_rows import event_rows

SYMBOLS = ("BTCUSDT", "ETHUSDT", "XRPUSDT")
BOOK = "orderbook.50.BTCUSDT"
Frame = dict[str, Any]


@pytest.fixture
def recorded(shared_data: Path) -> Callable[[str], list[str]]:
    """recorded(name): the frames of a recorded file, one a line."""
    return lambda name: (shared_data / "wire" / "bybit_ws" / name).read_text().splitlines()


def published_example(shared_data: Path, name: str) -> str:
    """The frame in one of Bybit's published examples."""
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


def nonzero_counts(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count and name != "frames"}


def test_every_symbol_has_its_four_topics() -> None:
    assert topics_for(("A", "B"))[3:6] == ["allLiquidation.A", "publicTrade.B", "orderbook.50.B"]


def test_the_recorded_spot_frames_give_their_trades_and_their_book(recorded) -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
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
    # seven of orderbook.1, which is not subscribed to; the rejection of a symbol that is not listed
    assert nonzero_counts(frames.counts) == {"other": 7, "pongs": 1, "rejected": 1}
    assert list(frames.rejected.values()) == ["Invalid symbol :[orderbook.50.NOSUCHSYM]"]


def test_the_recorded_book_of_500_levels_has_no_gap_and_is_never_crossed(shared_data: Path) -> None:
    import zipfile

    frames = FrameReader(SYMBOLS, book_every_us=1)
    with zipfile.ZipFile(shared_data / "wire" / "bybit_ws" / "orderbook500_XRPUSDT_2024-12-01.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode().splitlines()
    rows = [row for text in lines for row in frames.read(text.replace("orderbook.500.", "orderbook.50."))]
    assert len(rows) == len(lines) == 50
    assert nonzero_counts(frames.counts) == {}
    assert all(row["bid"] < row["ask"] for row in rows)


def test_the_recorded_tickers_give_funding_and_open_interest_only_when_they_change(recorded) -> None:
    frames = FrameReader(SYMBOLS)
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
    frames.forget_snapshots()  # snapshots with unchanged values give no rows
    assert [row for text in lines for row in frames.read(text)] == []


def test_a_ticker_combines_its_snapshot_with_every_change_since() -> None:
    frames = FrameReader(SYMBOLS)
    first = ticker("snapshot", 1, fundingRate="0.0001", nextFundingTime="28800000", openInterest="5")
    assert len(frames.read(first)) == 2
    assert frames.read(ticker("delta", 2, markPrice="7")) == []
    (interest,) = frames.read(ticker("delta", 3, openInterest="6"))
    assert (interest["open_interest"], interest["ts"], interest["event_id"]) == (6.0, 3000, "3")
    (funding,) = frames.read(ticker("delta", 4, nextFundingTime="57600000"))
    assert (funding["rate"], funding["next_ts"]) == (0.0001, 57600000000)


def test_a_ticker_change_without_a_snapshot_is_ignored() -> None:
    frames = FrameReader(SYMBOLS)
    assert frames.read(ticker("delta", 1, openInterest="6")) == []
    assert frames.counts["repeated"] == 1


def test_the_side_of_a_liquidation_is_the_takers_and_not_the_positions(shared_data: Path) -> None:
    (row,) = FrameReader(SYMBOLS).read(published_example(shared_data, "Liquidations"))
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
def test_the_published_examples_are_read(shared_data: Path, name: str, kinds: list[str]) -> None:
    rows = FrameReader(SYMBOLS).read(published_example(shared_data, name))
    assert [row["kind"] for row in rows] == kinds
    assert event_rows(rows).num_rows == len(kinds)


def test_book_changes_set_and_remove_levels() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    (row,) = frames.read(book(6, 2_000, bids=[["100", "0"], ["99.5", "7"]], asks=[["101", "1"]]))
    assert (row["bid"], row["ask"], row["bid_size"], row["ask_size"]) == (99.5, 101.0, 9.0, 5.0)
    assert (row["ts"], row["event_id"]) == (2_000_000, "6")


def test_a_book_gives_at_most_one_row_in_each_time_slot() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=100_000)
    texts = [snapshot(5, 1_000), book(6, 1_050), book(7, 1_099), book(8, 1_100), book(9, 1_350)]
    assert [row["event_id"] for text in texts for row in frames.read(text)] == ["5", "8", "9"]
    assert frames.book("BTCUSDT").update_id == 9


def test_after_a_missing_change_one_snapshot_is_requested_and_no_row_given_until_it_arrives() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    assert [frames.read(book(update, 2_000)) for update in (7, 8)] == [[], []]
    assert frames.take_gaps() == [BOOK]
    assert frames.take_gaps() == []
    assert frames.book("BTCUSDT") is None
    assert [row["event_id"] for row in frames.read(snapshot(8, 3_000))] == ["8"]
    assert [row["event_id"] for row in frames.read(book(9, 4_000))] == ["9"]
    assert frames.counts["gaps"] == 1


def test_a_repeated_book_change_is_not_applied_again() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    frames.read(book(6, 2_000, bids=[["100", "8"]]))
    assert frames.read(book(6, 2_000, bids=[["100", "9"]])) == []
    assert frames.book("BTCUSDT").bids[100.0] == 8.0
    assert nonzero_counts(frames.counts) == {"repeated": 1}


def test_a_book_that_the_exchange_resets_starts_empty() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    (row,) = frames.read(book(1, 2_000, "delta", [["50", "1"]], [["51", "1"]]))
    assert (row["bid"], row["ask"]) == (50.0, 51.0)
    assert frames.take_gaps() == []


def test_a_crossed_book_gives_no_row_and_requests_a_snapshot() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    assert frames.read(book(6, 2_000, bids=[["101.5", "1"]])) == []
    assert frames.take_gaps() == [BOOK]


def test_a_book_with_an_empty_side_gives_no_row() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    assert frames.read(book(5, 1_000, "snapshot", [["100", "1"]], [])) == []
    assert nonzero_counts(frames.counts) == {}


def frames_with_one_defect(text: str) -> list[str]:
    """Copies of a good frame with one value each removed or replaced by one of the wrong type."""
    frame = json.loads(text)
    texts = []
    inner = frame["data"][0] if isinstance(frame["data"], list) else frame["data"]
    for owner, names in ((frame, ["data"]), (inner, list(inner))):
        for name in names:
            for wrong in ("nonsense", None, [], float("nan"), {"a": 1}):
                original = owner[name]
                owner[name] = wrong
                texts.append(json.dumps(frame))
                owner[name] = original
            original = owner.pop(name)
            texts.append(json.dumps(frame))
            owner[name] = original
    return texts


TRADE = {"T": 1, "s": "BTCUSDT", "S": "Buy", "v": "0.001", "p": "16578.50", "i": "20f4"}
GOOD_FRAMES = [
    snapshot(5),
    ticker("snapshot", 1, fundingRate="0.0001", nextFundingTime="28800000", openInterest="5"),
    json.dumps({"topic": "publicTrade.BTCUSDT", "ts": 1, "data": [TRADE]}),
    json.dumps({"topic": "allLiquidation.BTCUSDT", "ts": 1, "data": [TRADE]}),
]


@pytest.mark.parametrize("text", GOOD_FRAMES, ids=["book", "ticker", "trade", "liquidation"])
def test_a_frame_with_any_wrong_value_never_raises_and_gives_no_incomplete_row(text: str) -> None:
    for wrong in frames_with_one_defect(text):
        frames = FrameReader(SYMBOLS, book_every_us=1)
        rows = event_rows(frames.read(wrong))
        assert rows["event_id"].null_count == rows["ts"].null_count == 0
        assert frames.read(text) or rows.num_rows, wrong  # the next frame is read


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "3", "null", '{"op":1', "{}", '{"topic":7}', b"\xff\xfe", '"text"']
)
def test_text_that_is_not_a_frame_is_counted_logged_and_skipped(text, caplog: pytest.LogCaptureFixture) -> None:
    frames = FrameReader(SYMBOLS)
    assert frames.read(text) == []
    assert frames.counts["malformed"] == 1
    assert "unreadable frame" in caplog.text


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
def test_a_ticker_with_an_impossible_value_is_refused_and_the_next_one_is_read(wrong: dict[str, str]) -> None:
    frames = FrameReader(SYMBOLS)
    good = {"fundingRate": "0.0001", "nextFundingTime": "28800000", "openInterest": "5"}
    assert frames.read(ticker("snapshot", 1, **good | wrong)) == []
    assert len(frames.read(ticker("snapshot", 2, **good))) == 2
    assert frames.read(ticker("delta", 3, **wrong)) == []
    assert [row["kind"] for row in frames.read(ticker("delta", 4, openInterest="6"))] == ["open_interest"]
    assert nonzero_counts(frames.counts) == {"malformed": 2}


@pytest.mark.parametrize("wrong", ["1e200", "1e-200", "0", "-1"])
def test_impossible_prices_and_sizes_are_refused(wrong: str) -> None:
    for topic in ("publicTrade", "allLiquidation"):
        for name in ("v", "p"):
            frames = FrameReader(SYMBOLS)
            data = [{**TRADE, name: wrong}]
            assert frames.read(json.dumps({"topic": f"{topic}.BTCUSDT", "ts": 1, "data": data})) == []
            assert nonzero_counts(frames.counts) == {"malformed": 1}
    frames = FrameReader(SYMBOLS)
    assert frames.read(book(5, kind="snapshot", bids=[[wrong, "1"]], asks=[["1e14", "1"]])) == []
    assert nonzero_counts(frames.counts) == {"malformed": 1}


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
def test_valid_json_with_values_that_cannot_be_stored_is_counted_and_never_fatal(text: str) -> None:
    frames = FrameReader(SYMBOLS)
    assert frames.read(text) == []
    assert nonzero_counts(frames.counts) == {"malformed": 1}
    assert all(event_rows(frames.read(good)).num_rows for good in GOOD_FRAMES)


def test_a_malformed_change_leaves_the_book_unchanged_and_causes_a_gap() -> None:
    frames = FrameReader(SYMBOLS, book_every_us=1)
    frames.read(snapshot(5))
    before = copy.deepcopy(frames.book("BTCUSDT"))
    assert frames.read(book(6, 2_000, bids=[["100", "9"], ["99", "lots"]])) == []
    assert frames.book("BTCUSDT") == before
    assert frames.read(book(7, 3_000)) == []
    assert (frames.counts["malformed"], frames.take_gaps()) == (1, [BOOK])


def test_an_acknowledgement_gives_no_row_and_a_rejection_is_recorded_by_topic() -> None:
    frames = FrameReader(SYMBOLS)
    assert frames.read('{"success":true,"ret_msg":"","conn_id":"c","req_id":"publicTrade.A","op":"subscribe"}') == []
    frames.read('{"success":false,"ret_msg":"Invalid symbol","conn_id":"c","req_id":"publicTrade.B","op":"subscribe"}')
    assert frames.rejected == {"publicTrade.B": "Invalid symbol"}
    assert nonzero_counts(frames.counts) == {"rejected": 1}
