"""Trading sessions and calendar constants: the only file that defines the length of a year.

There are two calendars. ``XNYS`` is the New York Stock Exchange, from exchange-calendars; its only interval is 1d.
``24/7`` is the market of perpetual futures, which never closes: its session is a UTC day, or a single bar for bars of
one second. All instants are numpy datetime64[us] in UTC. The timestamp of a bar is its open.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

import numpy as np

DAY = np.timedelta64(1, "D").astype("timedelta64[us]")
HOUR = np.timedelta64(1, "h").astype("timedelta64[us]")
SECOND = np.timedelta64(1, "s").astype("timedelta64[us]")
BAR_LENGTHS = {"1d": DAY, "1h": HOUR, "1s": SECOND}
SESSION_LENGTHS = {"1d": DAY, "1h": DAY, "1s": SECOND}  # of the calendar 24/7, by bar interval
FIRST_SESSION = "2000-01-03"  # the XNYS schedule starts here
LAST_SESSION = "2035-12-31"  # the XNYS schedule ends here
DAYS_PER_YEAR = 365
SESSIONS_PER_YEAR = {"XNYS": 252, "24/7": DAYS_PER_YEAR}
FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)  # after every bar: the end of a query without an upper bound


class UnknownCalendarError(ValueError):
    """A calendar name that is neither XNYS nor 24/7."""


def midnight(day: date) -> datetime:
    """00:00 UTC of ``day``."""
    return datetime.combine(day, time(), UTC)


def midnight_after(day: date) -> datetime:
    """00:00 UTC of the day after ``day``, when ``day`` ends."""
    return midnight(day + timedelta(days=1))


def to_epoch_us(instants: np.ndarray) -> np.ndarray:
    """Instants (datetime64, UTC) as int64 microseconds since 1970-01-01 00:00 UTC."""
    return instants.astype("datetime64[us]").astype(np.int64)


@lru_cache(maxsize=4)
def _schedule(calendar: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dates (datetime64[D]), opens and closes (datetime64[us], UTC) of the sessions of an exchange, oldest first."""
    import exchange_calendars

    if calendar not in SESSIONS_PER_YEAR:
        raise UnknownCalendarError(f"unknown calendar {calendar!r}; known: {', '.join(SESSIONS_PER_YEAR)}")
    schedule = exchange_calendars.get_calendar(calendar, start=FIRST_SESSION, end=LAST_SESSION).schedule
    dates = schedule.index.to_numpy().astype("datetime64[D]")
    opens = schedule["open"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    closes = schedule["close"].dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    return dates, opens, closes


def session_dates(calendar: str, start: date, end: date) -> np.ndarray:
    """Dates of the sessions in [start, end), datetime64[D], ascending. Raises UnknownCalendarError."""
    if calendar == "24/7":
        return np.arange(np.datetime64(start, "D"), np.datetime64(end, "D"))
    dates, _, _ = _schedule(calendar)
    return dates[(dates >= np.datetime64(start, "D")) & (dates < np.datetime64(end, "D"))]


def bar_opens(calendar: str, interval: str, start: date, end: date) -> np.ndarray:
    """Opens of all bars of the sessions of the dates [start, end) by the calendar, datetime64[us], ascending."""
    if calendar == "24/7":
        first = np.datetime64(start, "D").astype("datetime64[us]")
        stop = np.datetime64(end, "D").astype("datetime64[us]")
        return np.arange(first, stop, BAR_LENGTHS[interval])
    dates, opens, _ = _schedule(calendar)
    return opens[(dates >= np.datetime64(start, "D")) & (dates < np.datetime64(end, "D"))]


def bar_closes(calendar: str, interval: str, opens: np.ndarray) -> np.ndarray:
    """The close of each bar of ``opens`` (t,), datetime64[us] (t,).

    A bar of an exchange closes with its session. A bar of the calendar 24/7, or of a day without a session, closes one
    interval after its open.
    """
    opens = np.asarray(opens, dtype="datetime64[us]")
    if calendar == "24/7":
        return opens + BAR_LENGTHS[interval]
    dates, _, closes = _schedule(calendar)
    bar_dates = opens.astype("datetime64[D]")
    session_index = np.minimum(np.searchsorted(dates, bar_dates), len(dates) - 1)
    return np.where(dates[session_index] == bar_dates, closes[session_index], opens + BAR_LENGTHS[interval])


def last_session(calendar: str, as_of: date) -> date:
    """The date of the latest session on or before ``as_of``."""
    return session_dates(calendar, as_of - timedelta(days=14), as_of + timedelta(days=1))[-1].astype(date)


def next_session(calendar: str, after: date) -> date:
    """The date of the first session strictly after ``after``."""
    return session_dates(calendar, after + timedelta(days=1), after + timedelta(days=15))[0].astype(date)


def bar_after(calendar: str, interval: str, ts: np.datetime64, n_bars: int) -> np.datetime64:
    """Open of the bar that is ``n_bars`` bars after the bar that opens at ``ts``."""
    start = ts.astype("datetime64[D]").astype(date)
    n_days = 15 + n_bars * 365 // periods_per_year(calendar, interval)  # 15: more than the longest closure
    opens = bar_opens(calendar, interval, start, start + timedelta(days=n_days))
    return opens[int(np.searchsorted(opens, ts)) + n_bars]


def session_ends(calendar: str, interval: str, closes: np.ndarray) -> np.ndarray:
    """Positions of the last bars of their sessions, (d,) int64, ascending; ``closes`` (t,) are the bars' closes.

    Every bar of an exchange is a session. A session of the calendar 24/7 has ended only if its last bar is present.
    """
    if calendar != "24/7":
        return np.arange(len(closes))
    return np.flatnonzero(to_epoch_us(closes) % SESSION_LENGTHS[interval].astype(np.int64) == 0)


def bars_per_session(interval: str) -> int:
    """The number of bars in one session: 24 for hourly bars, otherwise 1."""
    return int(SESSION_LENGTHS[interval] // BAR_LENGTHS[interval])


def sessions_per_year(calendar: str, interval: str) -> int:
    """The number of sessions in a year: 252 on an exchange, 365 on the calendar 24/7, where 1s bars have 31 536 000."""
    return SESSIONS_PER_YEAR[calendar] * int(DAY // SESSION_LENGTHS[interval])


def periods_per_year(calendar: str, interval: str) -> int:
    """The number of bars in a year: 252 daily bars on an exchange; 365 daily or 8760 hourly bars on 24/7."""
    return sessions_per_year(calendar, interval) * bars_per_session(interval)
