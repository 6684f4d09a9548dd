"""Bybit's public trade archive: one gzip CSV per symbol and UTC day, read as typed batches of bounded size.

The file is first fetched whole into a temporary one, so that a broken download is asked for again before any row of it
has been used; then it is decompressed and parsed block by block. The archive dates a trade to a tenth of a millisecond
or finer, the websocket and REST to the millisecond before it: here it is dated as by those, so that it is one event.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import date
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import requests
from pyarrow import csv

from models.panel import TS_TYPE
from tasks.errors import MalformedAnswerError, NoPricesError, OutageError
from tasks.markets.event_rows import event_columns
from tasks.markets.retry_policy import RetryPolicy, refuse_status

ARCHIVE_URL = "https://public.bybit.com"
REQUESTS_PER_SECOND = 2
TIMEOUT_S = 30.0
CHUNK_BYTES, BLOCK_BYTES = 1 << 20, 4 << 20
MILLISECOND = 1_000  # microseconds
GZIP_MAGIC = b"\x1f\x8b"
COLUMNS = {
    "timestamp": pa.float64(),
    "symbol": pa.string(),
    "side": pa.string(),
    "size": pa.float64(),
    "price": pa.float64(),
    "trdMatchID": pa.string(),
}
SIDES = pa.array(["Buy", "Sell"])


class TradeArchive:
    """A client of the archive. Safe to share between threads."""

    def __init__(
        self,
        session: requests.Session | None = None,
        patience: RetryPolicy | None = None,
        url: str = ARCHIVE_URL,
        timeout_s: float = TIMEOUT_S,
    ):
        self._session = session or requests.Session()
        self._patience = patience or RetryPolicy(REQUESTS_PER_SECOND)
        self._url, self._timeout_s = url, timeout_s

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._patience.close()

    def trades(self, symbol: str, day: date) -> Iterator[pa.Table]:
        """Every trade of one symbol and UTC day in tables of EVENT_ROWS, in the order of the file (either way in time).

        Raises NoPricesError where the archive has no such file, MalformedAnswerError for one that is cut short or of
        another shape, ForbiddenError or OutageError once the patience is used up.
        """
        path = f"/trading/{symbol}/{symbol}{day}.csv.gz"
        with tempfile.TemporaryFile() as file:
            self._patience.ask(lambda: self._fetch(path, file), f"Bybit archive {path}")
            yield from _batches(file, symbol, f"Bybit archive {path}")

    def _fetch(self, path: str, file: IO[bytes]) -> None:
        """Leaves the whole answer in ``file``, from its beginning."""
        what = f"Bybit archive {path}"
        self._patience.wait_for_turn()
        file.seek(0)
        file.truncate()
        try:
            with self._session.get(self._url + path, timeout=self._timeout_s, stream=True) as response:
                refuse_status(response.status_code, what)
                if response.status_code != 200:
                    raise NoPricesError(
                        f"{what}: HTTP {response.status_code}, no such file; a day is there from the next morning on, "
                        "and only for symbols that traded: check both"
                    )
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
        except requests.exceptions.RequestException as exc:
            raise OutageError(f"{what}: no whole answer ({type(exc).__name__}: {exc}); try again later") from exc
        file.seek(0)


def _batches(file: IO[bytes], symbol: str, what: str) -> Iterator[pa.Table]:
    packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC  # a server may unpack it on the way
    file.seek(0)
    plain = pa.PythonFile(file, mode="r")
    try:
        reader = csv.open_csv(
            pa.CompressedInputStream(plain, "gzip") if packed else plain,
            csv.ReadOptions(block_size=BLOCK_BYTES),
            convert_options=csv.ConvertOptions(include_columns=list(COLUMNS), column_types=COLUMNS),
        )
        for batch in reader:
            yield _trades(pa.Table.from_batches([batch]), symbol, what)
    except (pa.ArrowException, OSError) as exc:
        raise MalformedAnswerError(
            f"{what}: cut short, or not the CSV we know with {', '.join(COLUMNS)} ({exc}); fetch the day again later"
        ) from exc


def _trades(rows: pa.Table, symbol: str, what: str) -> pa.Table:
    """Event rows of one block; MalformedAnswerError names the first row that no trade can be."""
    sound = pc.and_(pc.equal(rows["symbol"], symbol), pc.is_in(rows["side"], SIDES))
    for name in ("timestamp", "size", "price"):
        sound = pc.and_(sound, pc.and_(pc.is_finite(rows[name]), pc.greater(rows[name], 0)))
    broken = np.flatnonzero(~pc.fill_null(sound, False).to_numpy())
    if len(broken):
        raise MalformedAnswerError(f"{what}: no trade of {symbol}: {rows.slice(broken[0], 1).to_pylist()[0]}")
    microseconds = np.rint(rows["timestamp"].to_numpy() * 1e6).astype("int64") // MILLISECOND * MILLISECOND
    return event_columns(
        "trade",
        rows.num_rows,
        symbol=rows["symbol"],
        ts=pa.array(microseconds.view("datetime64[us]"), pa.timestamp("us")).cast(TS_TYPE),
        event_id=rows["trdMatchID"],
        side=pc.utf8_lower(rows["side"]),
        size=rows["size"],
        price=rows["price"],
    )
