"""Trading sessions and calendar constants: the only file that defines the length of a year.

Two calendars: ``XNYS`` (New York Stock Exchange, from exchange-calendars) and ``24/7`` (perpetuals; a session is a UTC
day, or a single bar where bars are as short as a second). All instants are numpy datetime64[us] in UTC; a bar is named
by its open.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

import numpy as np

DAY = np.timedelta64(1, "D").astype("timedelta64[us]")
HOUR = np.timedelta64(1, "h").astype("timedelta64[us]")
SECOND = np.timedelta64(1, "s").astype("timedelta64[us]")
INTERVALS = {"1d": DAY, "1h": HOUR, "1s": SECOND}
SESSIONS = {"1d": DAY, "1h": DAY, "1s": SECOND}  # by interval: time between two decisions in a market that never closes
FIRST_SESSION, LAST_SESSION = "2000-01-03", "2035-12-31"
DAYS_PER_YEAR = 365
SESSIONS_PER_YEAR = {"XNYS": 252, "24/7": DAYS_PER_YEAR}
FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)  # an instant after every bar, for queries without an upper bound


class UnknownCalendarError(ValueError):
    """A calendar name that is neither XNYS nor 24/7."""


def midnight(day: date) -> datetime:
    """00:00 UTC of the day."""
    return datetime.combine(day, time(), UTC)


def midnight_after(day: date) -> datetime:
    """00:00 UTC of the next day: the end of a night's date."""
    return midnight(day + timedelta(days=1))


def microseconds(instants: np.ndarray) -> np.ndarray:
    """Instants as int64 microseconds since 1970."""
    return instants.astype("datetime64[us]").astype(np.int64)


@lru_cache(maxsize=4)
def _schedule(calendar: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Session dates, opens and closes of an exchange calendar."""
    import exchange_calendars

    if calendar not in SESSIONS_PER_YEAR:
        raise UnknownCalendarError(f"unknown calendar {calendar!r}; known: {', '.join(SESSIONS_PER_YEAR)}")
    schedule = exchange_calendars.get_calendar(calendar, start=FIRST_SESSION, end=LAST_SESSION).schedule
    dates = schedule.index.to_numpy().astype("datetime64[D]")
    return dates, *(schedule[c].dt.tz_localize(None).to_numpy().astype("datetime64[us]") for c in ("open", "close"))


def session_dates(calendar: str, start: date, end: date) -> np.ndarray:
    """Dates of the sessions in [start, end), datetime64[D]."""
    if calendar == "24/7":
        return np.arange(np.datetime64(start, "D"), np.datetime64(end, "D"))
    dates, _, _ = _schedule(calendar)
    return dates[(dates >= np.datetime64(start, "D")) & (dates < np.datetime64(end, "D"))]


def bar_opens(calendar: str, interval: str, start: date, end: date) -> np.ndarray:
    """Opens of every bar of the sessions in [start, end), datetime64[us], as if no bar were missing."""
    if calendar == "24/7":
        first, stop = (np.datetime64(d, "D").astype("datetime64[us]") for d in (start, end))
        return np.arange(first, stop, INTERVALS[interval])
    dates, opens, _ = _schedule(calendar)
    return opens[(dates >= np.datetime64(start, "D")) & (dates < np.datetime64(end, "D"))]


def bar_closes(calendar: str, interval: str, opens: np.ndarray) -> np.ndarray:
    """The close of each bar, datetime64[us]: the session's close for daily exchange bars, otherwise open + interval."""
    opens = np.asarray(opens, dtype="datetime64[us]")
    if calendar == "24/7":
        return opens + INTERVALS[interval]
    dates, _, closes = _schedule(calendar)
    i = np.searchsorted(dates, opens.astype("datetime64[D]"))
    is_session = (i < len(dates)) & (dates[np.minimum(i, len(dates) - 1)] == opens.astype("datetime64[D]"))
    return np.where(is_session, closes[np.minimum(i, len(dates) - 1)], opens + INTERVALS[interval])


def last_session(calendar: str, as_of: date) -> date:
    """The latest session on or before ``as_of``."""
    return session_dates(calendar, as_of - timedelta(days=14), as_of + timedelta(days=1))[-1].astype(date)


def next_session(calendar: str, after: date) -> date:
    """The first session strictly after ``after``."""
    return session_dates(calendar, after + timedelta(days=1), after + timedelta(days=15))[0].astype(date)


def bar_after(calendar: str, interval: str, ts: np.datetime64, count: int) -> np.datetime64:
    """Open of the bar that comes ``count`` bars after the one at ``ts``."""
    day = ts.astype("datetime64[D]").astype(date)
    days = 15 + count * 365 // periods_per_year(calendar, interval)
    opens = bar_opens(calendar, interval, day, day + timedelta(days=days))
    return opens[int(np.searchsorted(opens, ts)) + count]


def session_ends(calendar: str, interval: str, closes: np.ndarray) -> np.ndarray:
    """Positions of the bars that end their session, (d,); ``closes`` (t,) is the close of each bar of the grid."""
    if calendar != "24/7":
        return np.arange(len(closes))
    return np.flatnonzero(closes.astype("datetime64[us]").astype(np.int64) % SESSIONS[interval].astype(np.int64) == 0)


def bars_per_session(interval: str) -> int:
    """The number of bars in one session."""
    return int(SESSIONS[interval] // INTERVALS[interval])


def sessions_per_year(calendar: str, interval: str) -> int:
    """Sessions in a year: 252 on an exchange; 365 days in a market that never closes, or its seconds for 1s bars."""
    return SESSIONS_PER_YEAR[calendar] * int(DAY // SESSIONS[interval])


def periods_per_year(calendar: str, interval: str) -> int:
    """Bars in a year: 252 daily bars on an exchange, 365 daily or 8760 hourly bars in a market that never closes."""
    return sessions_per_year(calendar, interval) * bars_per_session(interval)
