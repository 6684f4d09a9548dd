"""Macroeconomic features as they were known at each session's close, from series of FRED.

Glossary: t sessions, k values of one series.

FRED (the economic database of the St. Louis Fed) dates a value by its period, not by its publication. A value is used
from its availability date on, which is an upper bound of its publication date. So a feature can be a few days older
than the newest published value, but it is never early.

The values are today's revisions. Payrolls, claims, permits and seasonally adjusted prices were first published with
other values, so backtests are slightly optimistic. Point-in-time vintages (ALFRED) would correct this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.features.indicators import FeatureError

Observations = Mapping[
    str, tuple[np.ndarray, np.ndarray]
]  # series → (dates (k,) datetime64[D], ascending; values (k,))


@dataclass(frozen=True)
class MacroFeature:
    """One feature of one FRED series: its level or its change, of the value or of the value's logarithm.

    ``period``: the series' frequency. FRED dates a monthly value by the first day of its month, a daily value by its
    day and a weekly value by the last day of its week. ``delay_days``: calendar days from the period's end to the
    publication, at most. ``is_log``: the logarithm is used. ``change_periods``: the number of periods of the change, 0
    for the level. ``source``: the publisher and its schedule.
    """

    series: str
    period: Literal["day", "week", "month"]
    delay_days: int
    is_log: bool
    change_periods: int
    source: str


MACRO_FEATURES = (
    MacroFeature("VIXCLS", "day", 1, True, 0, "Cboe, at the close; 16:15 is after the session's"),
    MacroFeature(
        "T10Y2Y", "day", 5, False, 0, "Treasury yields, H.15 of the next business day; five span a long weekend"
    ),
    MacroFeature("DGS10", "day", 5, False, 63, "as T10Y2Y"),
    MacroFeature("FEDFUNDS", "month", 7, False, 3, "New York Fed, H.15 of the next month's first business days"),
    MacroFeature("BAA", "month", 10, False, 3, "Moody's monthly mean, in the next month's first days"),
    MacroFeature("ICSA", "week", 7, True, 13, "Labor Department, the Thursday after the week's Saturday; holidays +1"),
    MacroFeature(
        "WALCL", "week", 5, True, 13, "Federal Reserve H.4.1, Thursday 16:30 of Wednesday's level; holidays +1"
    ),
    MacroFeature("UNRATE", "month", 14, False, 3, "BLS employment report, the first Friday; 3rd to 11th of the month"),
    MacroFeature("PAYEMS", "month", 14, True, 3, "as UNRATE"),
    MacroFeature("CPIAUCSL", "month", 20, True, 12, "BLS, 10th to 16th of the next month"),
    MacroFeature("PERMIT", "month", 30, True, 12, "Census, 12th workday of the next month; its revision a week later"),
    MacroFeature("UMCSENT", "month", 35, False, 0, "Michigan; FRED may show it a month after the period"),
)
SHUTDOWNS = (  # (series, start, stop, published): a shutdown delayed the releases due in [start, stop) to ``published``
    (("PERMIT",), "2018-12-22", "2019-03-08", "2019-03-11"),
    (("UNRATE", "PAYEMS", "CPIAUCSL"), "2025-10-01", "2025-12-20", "2025-12-19"),
    (("ICSA",), "2025-10-01", "2025-11-20", "2025-11-21"),
    (("PERMIT",), "2025-10-01", "2025-12-01", "2026-01-12"),
    (("PERMIT",), "2025-12-01", "2026-03-12", "2026-03-13"),
)


def availability_dates(feature: MacroFeature, dates: np.ndarray) -> np.ndarray:
    """The first session date at whose close the value of each of ``dates`` (k,) is used, (k,) datetime64[D].

    ``dates`` are FRED's dates, ascending. The result does not decrease.
    """
    period_ends = dates.astype("datetime64[D]")
    if feature.period == "month":
        period_ends = (dates.astype("datetime64[M]") + 1).astype("datetime64[D]") - 1
    available = period_ends + feature.delay_days
    for series, start, stop, published in SHUTDOWNS:
        if feature.series in series:
            is_delayed = (available >= np.datetime64(start)) & (available < np.datetime64(stop))
            available = np.where(is_delayed, np.maximum(available, np.datetime64(published)), available)
    return np.maximum.accumulate(available)  # a long delay must not put a value after its successor


def macro_features(observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """MACRO_FEATURES at the close of each of ``sessions`` (t,) datetime64[D], (t, len(MACRO_FEATURES)) float64.

    A feature is NaN before its first value is available.
    Raises FeatureError for a series that is missing or out of order, and for a log of a value that is not positive.
    """
    return np.stack([_newest_available(feature, observations, sessions) for feature in MACRO_FEATURES], axis=-1)


def _newest_available(feature: MacroFeature, observations: Observations, sessions: np.ndarray) -> np.ndarray:
    """One feature at each session, (t,): the newest value that was available at its close, NaN if there is none."""
    if feature.series not in observations:
        raise FeatureError(
            f"no observations of {feature.series}; needed: {', '.join(i.series for i in MACRO_FEATURES)}"
        )
    dates, values = observations[feature.series]
    if not len(dates) or (dates[1:] <= dates[:-1]).any():
        raise FeatureError(f"{feature.series}: its dates must be distinct and ascending, at least one")
    if feature.is_log and not (values > 0).all():
        raise FeatureError(f"{feature.series}: its log needs positive values, the least is {np.min(values):g}")
    dates, values = _changes(feature, dates, np.log(values) if feature.is_log else values)
    newest_index = np.searchsorted(availability_dates(feature, dates), sessions, side="right") - 1
    return np.where(newest_index >= 0, values[newest_index], np.nan) if len(values) else np.full(len(sessions), np.nan)


def _changes(feature: MacroFeature, dates: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The dates and changes of ``values`` over ``change_periods``; dates and values unchanged for a level.

    The change of a month counts calendar months and is dropped if the earlier month has no value. The change of a day
    or week counts values.
    """
    n_periods = feature.change_periods
    if n_periods == 0:
        return dates, values
    if feature.period != "month":
        return dates[n_periods:], values[n_periods:] - values[:-n_periods]
    months = dates.astype("datetime64[M]")
    earlier_index = np.searchsorted(months, months - n_periods)
    has_earlier = months[earlier_index] == months - n_periods
    return dates[has_earlier], (values - values[earlier_index])[has_earlier]
