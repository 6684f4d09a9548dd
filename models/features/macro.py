"""Macroeconomic indicators as they were known at each session's close.

A FRED series is dated by its period, not by its publication: a value is used from its ``availability_dates`` on. The
delays are upper bounds, so a feature may be a few days staler than the published value; it is never early.

A delay does not correct for revisions: the values are today's revision. Payrolls, claims, permits and seasonally
adjusted prices were first published differently, so results are slightly optimistic. Point-in-time vintages (ALFRED)
would correct it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.features.indicators import FeatureError

Observations = Mapping[str, tuple[np.ndarray, np.ndarray]]  # series → dates (k,) datetime64[D] ascending, values (k,)


@dataclass(frozen=True)
class Indicator:
    """A FRED series as one feature: the change of its value, or of its log, over ``over`` periods (0: the level).

    ``dated``: a daily or weekly value has the date of its day, a monthly value that of the first day of its month.
    ``delay_days``: calendar days from the period's end to the publication; ``source``: the publisher and the schedule.
    """

    series: str
    dated: Literal["day", "week", "month"]
    delay_days: int
    log: bool
    over: int
    source: str


INDICATORS = (
    Indicator("VIXCLS", "day", 1, True, 0, "Cboe, at the close; 16:15 is after the session's"),
    Indicator("T10Y2Y", "day", 5, False, 0, "Treasury yields, H.15 of the next business day; five span a long weekend"),
    Indicator("DGS10", "day", 5, False, 63, "as T10Y2Y"),
    Indicator("FEDFUNDS", "month", 7, False, 3, "New York Fed, H.15 of the next month's first business days"),
    Indicator("BAA", "month", 10, False, 3, "Moody's monthly mean, in the next month's first days"),
    Indicator("ICSA", "week", 7, True, 13, "Labor Department, the Thursday after the week's Saturday; holidays +1"),
    Indicator("WALCL", "week", 5, True, 13, "Federal Reserve H.4.1, Thursday 16:30 of Wednesday's level; holidays +1"),
    Indicator("UNRATE", "month", 14, False, 3, "BLS employment report, the first Friday; 3rd to 11th of the month"),
    Indicator("PAYEMS", "month", 14, True, 3, "as UNRATE"),
    Indicator("CPIAUCSL", "month", 20, True, 12, "BLS, 10th to 16th of the next month"),
    Indicator("PERMIT", "month", 30, True, 12, "Census, 12th workday of the next month; its revision a week later"),
    Indicator("UMCSENT", "month", 35, False, 0, "Michigan; FRED may show it a month after the period"),
)
SHUTDOWNS = (  # releases due in [start, stop) were delayed by a government shutdown, to the last date at the latest
    (("PERMIT",), "2018-12-22", "2019-03-08", "2019-03-11"),
    (("UNRATE", "PAYEMS", "CPIAUCSL"), "2025-10-01", "2025-12-20", "2025-12-19"),
    (("ICSA",), "2025-10-01", "2025-11-20", "2025-11-21"),
    (("PERMIT",), "2025-10-01", "2025-12-01", "2026-01-12"),
    (("PERMIT",), "2025-12-01", "2026-03-12", "2026-03-13"),
)


def availability_dates(indicator: Indicator, dates: np.ndarray) -> np.ndarray:
    """The day from whose close on each value of ``dates`` (k,) is used, datetime64[D], non-decreasing."""
    ends = dates.astype("datetime64[D]")
    if indicator.dated == "month":
        ends = (dates.astype("datetime64[M]") + 1).astype("datetime64[D]") - 1
    available = ends + indicator.delay_days
    for series, start, stop, published in SHUTDOWNS:
        if indicator.series in series:
            is_delayed = (available >= np.datetime64(start)) & (available < np.datetime64(stop))
            available = np.where(is_delayed, np.maximum(available, np.datetime64(published)), available)
    return np.maximum.accumulate(available)  # a long delay must not put a value after its successor


def macro_features(observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """INDICATORS at the close of each session, (t, len(INDICATORS)) float64, NaN before a series' first value.

    Raises FeatureError for a series that is missing or out of order, and for a log of a value that is not positive.
    """
    return np.stack([_newest_available(indicator, observations, sessions) for indicator in INDICATORS], axis=-1)


def _newest_available(indicator: Indicator, observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """One indicator at each session, (t,): the newest value that was available by then."""
    if indicator.series not in observations:
        raise FeatureError(f"no observations of {indicator.series}; needed: {', '.join(i.series for i in INDICATORS)}")
    dates, values = observations[indicator.series]
    if not len(dates) or (dates[1:] <= dates[:-1]).any():
        raise FeatureError(f"{indicator.series}: dates must be there, distinct and ascending")
    if indicator.log and not (values > 0).all():
        raise FeatureError(f"{indicator.series}: its log needs positive values, the least is {np.min(values):g}")
    dates, values = _changes(indicator, dates, np.log(values) if indicator.log else values)
    newest = np.searchsorted(availability_dates(indicator, dates), sessions, side="right") - 1
    return np.where(newest >= 0, values[newest], np.nan) if len(values) else np.full(len(sessions), np.nan)


def _changes(indicator: Indicator, dates: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dates and changes over ``over`` periods, without the months whose earlier month has no value."""
    if indicator.over == 0:
        return dates, values
    if indicator.dated != "month":
        return dates[indicator.over :], values[indicator.over :] - values[: -indicator.over]
    months = dates.astype("datetime64[M]")
    earlier = np.searchsorted(months, months - indicator.over)
    has_earlier = months[earlier] == months - indicator.over
    return dates[has_earlier], (values - values[earlier])[has_earlier]
