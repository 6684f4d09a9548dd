"""Yahoo daily bars, dividends and splits through yfinance, as typed tables or typed errors.

yfinance keeps one session, one cookie and one answer cache for the whole process. A night must never be answered from
another night's tape, so every client here has its own of each, and nothing is kept on disk.
"""

from __future__ import annotations

import logging
import warnings
from datetime import date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import requests
from yfinance._http import new_session
from yfinance.config import YfConfig
from yfinance.data import YfData
from yfinance.exceptions import YFException, YFPricesMissingError, YFRateLimitError
from yfinance.scrapers.history import PriceHistory

from models.panel import TS_TYPE
from models.sessions import bar_closes, bar_opens, session_dates
from tasks.errors import (
    MalformedAnswerError,
    MarketError,
    NoPricesError,
    OutageError,
    RateLimitedError,
    RefusedError,
    UnknownSymbolError,
)
from tasks.markets.retry_policy import RetryPolicy, refuse_status

logger = logging.getLogger(__name__)

CALENDAR, TIMEZONE = "XNYS", "America/New_York"
REQUESTS_PER_SECOND = 4
TIMEOUT_S = 10.0
COLUMNS = {
    "Open": "open",
    "High": "high",
    "Low": "low",
    "Close": "close",
    "Adj Close": "close_adjusted",
    "Volume": "volume",
}
ACTION_KINDS = {"Dividends": "dividend", "Stock Splits": "split"}
# yfinance turns its own deprecation warnings back on; nobody who runs a night can act on them
warnings.filterwarnings("ignore", category=DeprecationWarning, module="yfinance")


class _Wire(YfData):
    """yfinance's way to the wire, paced by our limiter and without its caches."""

    def __init__(self, session: object, patience: RetryPolicy) -> None:
        super().__init__(session)
        self._patience = patience

    def get(self, url, params=None, timeout=30):
        self._patience.wait_for_turn()
        response = super().get(url, params, timeout)
        refuse_status(response.status_code, f"Yahoo {url}")
        body = response.text.lstrip()
        if not body.startswith('{"chart"'):
            error = MalformedAnswerError if body.startswith("{") else OutageError
            raise error(f"Yahoo {url}: HTTP {response.status_code} with {body[:80]!r}, which is not a chart")
        return response

    cache_get = get  # the cache outlives the client, and would answer one tape's question from another's

    def _load_cookie_curlCffi(self):  # noqa: N802
        return False

    def _save_cookie_curlCffi(self):  # noqa: N802
        self._cookie = True  # the session keeps it, so that it is asked for once
        return True


class Yahoo:
    """A client of Yahoo's chart service that never returns a bar which had not closed at ``until`` (UTC).

    ``session`` is a requests session (a tape's, a test's); None takes yfinance's own, which looks like a browser.
    Safe to share between threads.
    """

    def __init__(
        self,
        until: datetime,
        session: requests.Session | None = None,
        patience: RetryPolicy | None = None,
        timeout_s: float = TIMEOUT_S,
    ):
        YfConfig.debug.hide_exceptions = False
        self._until = np.datetime64(until.replace(tzinfo=None), "us")
        self._patience = patience or RetryPolicy(REQUESTS_PER_SECOND)
        self._session, self._timeout_s = session or new_session(), timeout_s
        # past the metaclass, which would hand every client of the process the same instance
        self._wire = type.__call__(_Wire, self._session, self._patience)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._patience.close()

    def daily_bars(self, symbol: str, start: date, end: date) -> tuple[pa.Table, pa.Table]:
        """Bars and corporate actions of sessions in [start, end), oldest first.

        Bars: symbol, interval, ts (session open, UTC), open, high, low, close (split-adjusted), close_adjusted,
        volume (shares), turnover (null). Actions: symbol, ts (open of the ex-date's session), kind dividend|split,
        value (dollars a share, or new shares for an old one). A bar without any price is no bar; days without a session
        are dropped. Raises UnknownSymbolError, NoPricesError, RefusedError, MalformedAnswerError, ForbiddenError,
        OutageError.
        """
        frame = self._patience.ask(lambda: self._history(symbol, start, end), f"Yahoo {symbol}")
        dates = frame.index.tz_localize(None).to_numpy().astype("datetime64[D]")
        sessions = session_dates(CALENDAR, start, end)
        position = np.searchsorted(sessions, dates)
        known = np.isin(dates, sessions)
        opens = np.full(len(dates), np.datetime64("NaT", "us"))
        opens[known] = bar_opens(CALENDAR, "1d", start, end)[position[known]]
        kept = known.copy()
        kept[known] = bar_closes(CALENDAR, "1d", opens[known]) <= self._until
        if len(dates) > known.sum():
            logger.warning("Yahoo %s: %d rows on days without a session dropped", symbol, len(dates) - known.sum())
        frame, opens = frame[kept], opens[kept]
        return _bars(symbol, frame, opens), _actions(symbol, frame, opens)

    def _history(self, symbol: str, start: date, end: date) -> pd.DataFrame:
        what = f"Yahoo {symbol} {start} to {end}"
        try:
            prices = PriceHistory(self._wire, symbol, TIMEZONE, self._session)
            return prices.history(start=start, end=end, auto_adjust=False, timeout=self._timeout_s)
        except MarketError:
            raise
        except YFRateLimitError as exc:
            raise RateLimitedError(f"{what}: too many requests; wait, or lower the request rate") from exc
        except YFPricesMissingError as exc:
            raise _missing(what, exc.yahoo_reason) from exc
        except YFException as exc:
            raise OutageError(f"{what}: {exc}") from exc
        except OSError as exc:  # the root of both requests' and curl's errors
            raise OutageError(f"{what}: no whole answer ({type(exc).__name__}: {exc}); try again later") from exc
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
            raise MalformedAnswerError(f"{what}: not the chart shape we know ({type(exc).__name__}: {exc})") from exc


def _missing(what: str, reason: str | None) -> MarketError:
    """The error behind an answer without prices; ``reason`` is Yahoo's own sentence."""
    if reason is None or "doesn't exist for startDate" in reason:
        return NoPricesError(f"{what}: no prices in this span; check the universe's valid_from and valid_to")
    if "No data found" in reason:
        return UnknownSymbolError(f"{what}: Yahoo does not list it ({reason}); check the spelling or set its valid_to")
    return RefusedError(f"{what}: Yahoo refused ({reason})")


def _bars(symbol: str, frame: pd.DataFrame, opens: np.ndarray) -> pa.Table:
    printed = frame[["Open", "High", "Low", "Close"]].notna().any(axis=1).to_numpy()
    n = int(printed.sum())
    columns = {
        "symbol": pa.array([symbol] * n, pa.string()),
        "interval": pa.array(["1d"] * n, pa.string()),
        "ts": pa.array(opens[printed], pa.timestamp("us")).cast(TS_TYPE),
    }
    for theirs, ours in COLUMNS.items():
        columns[ours] = pa.array(frame[theirs].to_numpy(np.float64)[printed], pa.float64(), from_pandas=True)
    columns["turnover"] = pa.nulls(n, pa.float64())
    return pa.table(columns)


def _actions(symbol: str, frame: pd.DataFrame, opens: np.ndarray) -> pa.Table:
    tables = []
    for theirs, kind in ACTION_KINDS.items():
        values = frame[theirs].to_numpy(np.float64)
        happened = np.nan_to_num(values) != 0
        n = int(happened.sum())
        tables.append(
            pa.table(
                {
                    "symbol": pa.array([symbol] * n, pa.string()),
                    "ts": pa.array(opens[happened], pa.timestamp("us")).cast(TS_TYPE),
                    "kind": pa.array([kind] * n, pa.string()),
                    "value": pa.array(values[happened], pa.float64()),
                }
            )
        )
    return pa.concat_tables(tables)
