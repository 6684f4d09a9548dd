"""Macroeconomic indicators as they were known at each session's close.

A FRED series is dated by its period, not by its publication: a value counts from the day it was out, ``known_on``. The
delays are upper bounds, so a feature is at times a few days staler than a desk's own; never earlier.

Not cured by any delay: the values are today's revision. Payrolls, claims, permits and seasonally adjusted prices were
first published differently, so this is a little kinder than life. Point-in-time vintages (ALFRED) would settle it.
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
    """A FRED series as one feature: its value, or its log, less that of ``over`` periods before (0: the level).

    ``dated``: a daily or weekly value bears the day it is of, a monthly one the first day of its month.
    ``delay_days``: calendar days from the period's end until everyone had it; ``source``: who publishes it, and when.
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
SHUTDOWNS = (  # releases due in [from, before) came when the government was open again, by the last date at the latest
    (("PERMIT",), "2018-12-22", "2019-03-08", "2019-03-11"),
    (("UNRATE", "PAYEMS", "CPIAUCSL"), "2025-10-01", "2025-12-20", "2025-12-19"),
    (("ICSA",), "2025-10-01", "2025-11-20", "2025-11-21"),
    (("PERMIT",), "2025-10-01", "2025-12-01", "2026-01-12"),
    (("PERMIT",), "2025-12-01", "2026-03-12", "2026-03-13"),
)


def known_on(indicator: Indicator, dates: np.ndarray) -> np.ndarray:
    """The day from whose close on each value of ``dates`` (k,) is used, datetime64[D], never falling."""
    ends = dates.astype("datetime64[D]")
    if indicator.dated == "month":
        ends = (dates.astype("datetime64[M]") + 1).astype("datetime64[D]") - 1
    known = ends + indicator.delay_days
    for series, start, stop, out in SHUTDOWNS:
        if indicator.series in series:
            held = (known >= np.datetime64(start)) & (known < np.datetime64(stop))
            known = np.where(held, np.maximum(known, np.datetime64(out)), known)
    return np.maximum.accumulate(known)  # a delay that overtakes the next period's would reorder them


def macro_features(observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """INDICATORS at the close of each session, (t, 12) float64, NaN before a series' first.

    Raises FeatureError for a series that is missing, out of order, or where a log meets a value that is not positive.
    """
    return np.stack([_as_known(indicator, observations, sessions) for indicator in INDICATORS], axis=-1)


def _as_known(indicator: Indicator, observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """One indicator at each session, (t,): the newest value that was out by then."""
    if indicator.series not in observations:
        raise FeatureError(f"no observations of {indicator.series}; needed: {', '.join(i.series for i in INDICATORS)}")
    dates, values = observations[indicator.series]
    if not len(dates) or (dates[1:] <= dates[:-1]).any():
        raise FeatureError(f"{indicator.series}: dates must be there, distinct and ascending")
    if indicator.log and not (values > 0).all():
        raise FeatureError(f"{indicator.series}: its log needs positive values, the least is {np.min(values):g}")
    dates, values = _changed(indicator, dates, np.log(values) if indicator.log else values)
    newest = np.searchsorted(known_on(indicator, dates), sessions, side="right") - 1
    return np.where(newest >= 0, values[newest], np.nan) if len(values) else np.full(len(sessions), np.nan)


def _changed(indicator: Indicator, dates: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dates and changes over ``over`` periods; a month whose counterpart was never surveyed has none."""
    if indicator.over == 0:
        return dates, values
    if indicator.dated != "month":
        return dates[indicator.over :], values[indicator.over :] - values[: -indicator.over]
    months = dates.astype("datetime64[M]")
    place = np.searchsorted(months, months - indicator.over)
    there = months[place] == months - indicator.over
    return dates[there], (values - values[place])[there]
