"""Yahoo daily bars, dividends and splits through yfinance, as typed tables or typed errors.

By default yfinance has one session, one cookie and one response cache per process. A night (the run for one date) must
never receive answers from the tape of another night. Therefore every client here has its own session and cookie, no
response cache, and stores nothing on disk.
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
from tasks.markets.provider import Provider
from tasks.markets.retry_policy import RetryPolicy, raise_for_status

logger = logging.getLogger(__name__)

CALENDAR = "XNYS"
TIMEZONE = "America/New_York"
REQUESTS_PER_SECOND = 4
TIMEOUT_S = 10.0
COLUMN_NAMES = {  # name in yfinance to name in raw.bars
    "Open": "open",
    "High": "high",
    "Low": "low",
    "Close": "close",
    "Adj Close": "close_adjusted",
    "Volume": "volume",
}
ACTION_KINDS = {"Dividends": "dividend", "Stock Splits": "split"}
# yfinance enables its own deprecation warnings again, which a user of a night cannot act on
warnings.filterwarnings("ignore", category=DeprecationWarning, module="yfinance")


class _Transport(YfData):
    """yfinance's HTTP layer with the rate limit of a RetryPolicy and without caches."""

    def __init__(self, session: object, retry_policy: RetryPolicy) -> None:
        super().__init__(session)
        self._retry_policy = retry_policy

    def get(self, url, params=None, timeout=30):
        self._retry_policy.wait_for_turn()
        response = super().get(url, params, timeout)
        raise_for_status(response.status_code, f"Yahoo {url}")
        body = response.text.lstrip()
        if not body.startswith('{"chart"'):
            error = MalformedAnswerError if body.startswith("{") else OutageError
            raise error(f"Yahoo {url}: HTTP {response.status_code} with {body[:80]!r}, which is not a chart")
        return response

    cache_get = get  # the cache outlives the client and would return answers of another tape

    def _load_cookie_curlCffi(self):  # noqa: N802
        return False

    def _save_cookie_curlCffi(self):  # noqa: N802
        self._cookie = True  # the session stores the cookie, so that it is requested only once
        return True


class Yahoo(Provider):
    """A client of Yahoo's chart service. It returns only bars that had closed by ``until`` (UTC).

    ``session`` is a requests session, such as that of a tape; None creates yfinance's session, which behaves like a
    browser. Several threads can share one client.
    """

    def __init__(
        self,
        until: datetime,
        session: requests.Session | None = None,
        retry_policy: RetryPolicy | None = None,
        timeout_s: float = TIMEOUT_S,
    ):
        YfConfig.debug.hide_exceptions = False
        self._until = np.datetime64(until.replace(tzinfo=None), "us")
        self._retry_policy = retry_policy or RetryPolicy(REQUESTS_PER_SECOND)
        self._session = session or new_session()
        self._timeout_s = timeout_s
        # bypasses the metaclass, which would return the same instance to every client of the process
        self._transport = type.__call__(_Transport, self._session, self._retry_policy)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()
        self._retry_policy.close()

    def fetch(self, symbol: str, interval: str, start: datetime, end: datetime) -> dict[str, pa.Table]:
        """Daily bars and corporate actions of sessions with a date in [start, end); ``interval`` is always 1d."""
        bars, actions = self.daily_bars(symbol, start.date(), end.date())
        return {"bars": bars, "corporate_actions": actions}

    def daily_bars(self, symbol: str, start: date, end: date) -> tuple[pa.Table, pa.Table]:
        """Bars and corporate actions of sessions with a date in [start, end) that had closed by ``until``.

        Bars, oldest first: symbol, interval, ts (session open, UTC), open, high, low, close (split-adjusted),
        close_adjusted, volume (shares), turnover (null). Rows without any price, and rows on days without a session,
        are dropped.

        Actions, dividends before splits, each oldest first: symbol, ts (open of the ex-date's session, UTC), kind
        (dividend or split), value (dollars per share, or new shares per old share).

        Raises UnknownSymbolError, NoPricesError, RefusedError, MalformedAnswerError, ForbiddenError, OutageError.
        """
        frame = self._retry_policy.call(lambda: self._history(symbol, start, end), f"Yahoo {symbol}")
        dates = frame.index.tz_localize(None).to_numpy().astype("datetime64[D]")
        sessions = session_dates(CALENDAR, start, end)
        positions = np.searchsorted(sessions, dates)
        is_session = np.isin(dates, sessions)
        open_times = np.full(len(dates), np.datetime64("NaT", "us"))
        open_times[is_session] = bar_opens(CALENDAR, "1d", start, end)[positions[is_session]]
        has_closed = is_session.copy()
        has_closed[is_session] = bar_closes(CALENDAR, "1d", open_times[is_session]) <= self._until
        n_dropped = len(dates) - is_session.sum()
        if n_dropped > 0:
            logger.warning("Yahoo %s: %d rows on days without a session dropped", symbol, n_dropped)
        frame = frame[has_closed]
        open_times = open_times[has_closed]
        return _bars(symbol, frame, open_times), _actions(symbol, frame, open_times)

    def _history(self, symbol: str, start: date, end: date) -> pd.DataFrame:
        label = f"Yahoo {symbol} {start} to {end}"
        try:
            prices = PriceHistory(self._transport, symbol, TIMEZONE, self._session)
            return prices.history(start=start, end=end, auto_adjust=False, timeout=self._timeout_s)
        except MarketError:
            raise
        except YFRateLimitError as exc:
            raise RateLimitedError(f"{label}: too many requests; wait, or lower the request rate") from exc
        except YFPricesMissingError as exc:
            raise _no_prices_error(label, exc.yahoo_reason) from exc
        except YFException as exc:
            raise OutageError(f"{label}: {exc}") from exc
        except OSError as exc:  # the root of both requests' and curl's errors
            raise OutageError(f"{label}: no whole answer ({type(exc).__name__}: {exc}); try again later") from exc
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
            raise MalformedAnswerError(f"{label}: not the chart shape we know ({type(exc).__name__}: {exc})") from exc


def _no_prices_error(label: str, reason: str | None) -> MarketError:
    """The error for an answer without prices; ``reason`` is Yahoo's message."""
    if reason is None or "doesn't exist for startDate" in reason:
        return NoPricesError(f"{label}: no prices in this period; check the universe's valid_from and valid_to")
    if "No data found" in reason:
        return UnknownSymbolError(f"{label}: Yahoo does not list it ({reason}); check the spelling or set its valid_to")
    return RefusedError(f"{label}: Yahoo refused ({reason})")


def _bars(symbol: str, frame: pd.DataFrame, open_times: np.ndarray) -> pa.Table:
    """The bars of the rows of ``frame`` that have any price; ``open_times`` (rows,) are the rows' session opens."""
    has_price = frame[["Open", "High", "Low", "Close"]].notna().any(axis=1).to_numpy()
    n_rows = int(has_price.sum())
    columns = {
        "symbol": pa.array([symbol] * n_rows, pa.string()),
        "interval": pa.array(["1d"] * n_rows, pa.string()),
        "ts": pa.array(open_times[has_price], pa.timestamp("us")).cast(TS_TYPE),
    }
    for yahoo_name, name in COLUMN_NAMES.items():
        columns[name] = pa.array(frame[yahoo_name].to_numpy(np.float64)[has_price], pa.float64(), from_pandas=True)
    columns["turnover"] = pa.nulls(n_rows, pa.float64())
    return pa.table(columns)


def _actions(symbol: str, frame: pd.DataFrame, open_times: np.ndarray) -> pa.Table:
    """The dividends and splits of the rows of ``frame``; ``open_times`` (rows,) are the rows' session opens."""
    tables = []
    for yahoo_name, kind in ACTION_KINDS.items():
        values = frame[yahoo_name].to_numpy(np.float64)
        is_action = np.nan_to_num(values) != 0
        n_rows = int(is_action.sum())
        tables.append(
            pa.table(
                {
                    "symbol": pa.array([symbol] * n_rows, pa.string()),
                    "ts": pa.array(open_times[is_action], pa.timestamp("us")).cast(TS_TYPE),
                    "kind": pa.array([kind] * n_rows, pa.string()),
                    "value": pa.array(values[is_action], pa.float64()),
                }
            )
        )
    return pa.concat_tables(tables)
