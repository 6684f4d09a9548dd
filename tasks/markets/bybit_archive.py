"""Bybit's public trade archive: one gzip CSV per symbol and UTC day, read as typed batches of bounded size.

A file is first downloaded completely into a temporary file, so that a broken download is retried before any row is
used. It is then decompressed and parsed block by block.

The archive gives a trade's time to a tenth of a millisecond or finer; the websocket and REST round it down to
milliseconds. Times are rounded down here too, so that a trade has the same time from every source.
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
from tasks.markets.retry_policy import RetryPolicy, raise_for_status

ARCHIVE_URL = "https://public.bybit.com"
REQUESTS_PER_SECOND = 2
TIMEOUT_S = 30.0
DOWNLOAD_CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 4 << 20  # of decompressed CSV per batch
MILLISECOND_US = 1_000
GZIP_MAGIC = b"\x1f\x8b"
COLUMN_TYPES = {
    "timestamp": pa.float64(),
    "symbol": pa.string(),
    "side": pa.string(),
    "size": pa.float64(),
    "price": pa.float64(),
    "trdMatchID": pa.string(),
}
WIRE_SIDES = pa.array(["Buy", "Sell"])


class TradeArchive:
    """A client of the archive. Several threads can share one client."""

    def __init__(
        self,
        session: requests.Session | None = None,
        retry_policy: RetryPolicy | None = None,
        url: str = ARCHIVE_URL,
        timeout_s: float = TIMEOUT_S,
    ):
        self._session = session or requests.Session()
        self._retry_policy = retry_policy or RetryPolicy(REQUESTS_PER_SECOND)
        self._url = url
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._retry_policy.close()

    def trades(self, symbol: str, day: date) -> Iterator[pa.Table]:
        """Every trade of one symbol and UTC day, in tables of EVENT_SCHEMA.

        The trades have the order of the file, which is oldest first or newest first. Raises NoPricesError if the
        archive has no such file, MalformedAnswerError for a file that is truncated or has unexpected columns or values,
        ForbiddenError or OutageError after all retries.
        """
        path = f"/trading/{symbol}/{symbol}{day}.csv.gz"
        with tempfile.TemporaryFile() as file:
            self._retry_policy.call(lambda: self._fetch(path, file), f"Bybit archive {path}")
            yield from _batches(file, symbol, f"Bybit archive {path}")

    def _fetch(self, path: str, file: IO[bytes]) -> None:
        """Downloads ``path`` into ``file``, replacing its content, and rewinds the file."""
        label = f"Bybit archive {path}"
        self._retry_policy.wait_for_turn()
        file.seek(0)
        file.truncate()
        try:
            with self._session.get(self._url + path, timeout=self._timeout_s, stream=True) as response:
                raise_for_status(response.status_code, label)
                if response.status_code != 200:
                    raise NoPricesError(
                        f"{label}: HTTP {response.status_code}, no such file; a day is there from the next morning on, "
                        "and only for symbols that traded: check both"
                    )
                for chunk in response.iter_content(DOWNLOAD_CHUNK_BYTES):
                    file.write(chunk)
        except requests.exceptions.RequestException as exc:
            raise OutageError(f"{label}: no whole answer ({type(exc).__name__}: {exc}); try again later") from exc
        file.seek(0)


def _batches(file: IO[bytes], symbol: str, label: str) -> Iterator[pa.Table]:
    """The trades of a downloaded CSV file in tables of EVENT_SCHEMA, one per block."""
    is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC  # a server can have decompressed it
    file.seek(0)
    source = pa.PythonFile(file, mode="r")
    try:
        reader = csv.open_csv(
            pa.CompressedInputStream(source, "gzip") if is_gzip else source,
            csv.ReadOptions(block_size=BLOCK_BYTES),
            convert_options=csv.ConvertOptions(include_columns=list(COLUMN_TYPES), column_types=COLUMN_TYPES),
        )
        for batch in reader:
            yield _trades(pa.Table.from_batches([batch]), symbol, label)
    except (pa.ArrowException, OSError) as exc:
        raise MalformedAnswerError(
            f"{label}: cut short, or not the CSV we know with {', '.join(COLUMN_TYPES)} ({exc}); "
            "fetch the day again later"
        ) from exc


def _trades(rows: pa.Table, symbol: str, label: str) -> pa.Table:
    """A table of EVENT_SCHEMA from one block. Raises MalformedAnswerError for an invalid trade."""
    is_valid = pc.and_(pc.equal(rows["symbol"], symbol), pc.is_in(rows["side"], WIRE_SIDES))
    for name in ("timestamp", "size", "price"):
        is_valid = pc.and_(is_valid, pc.and_(pc.is_finite(rows[name]), pc.greater(rows[name], 0)))
    invalid_rows = np.flatnonzero(~pc.fill_null(is_valid, False).to_numpy())
    if len(invalid_rows):
        raise MalformedAnswerError(f"{label}: no trade of {symbol}: {rows.slice(invalid_rows[0], 1).to_pylist()[0]}")
    microseconds = np.rint(rows["timestamp"].to_numpy() * 1e6).astype("int64") // MILLISECOND_US * MILLISECOND_US
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
