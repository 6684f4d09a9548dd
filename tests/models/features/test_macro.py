"""Macroeconomic features: only values that were published by a session's close are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.features.indicators import FeatureError
from models.features.macro import MACRO_FEATURES, MacroFeature, availability_dates, macro_features
from tasks.macro import read_fred

MONTHS = np.arange("2019-01", "2021-01", dtype="datetime64[M]").astype("datetime64[D]")
SESSIONS = np.arange("2020-01-01", "2020-12-01", dtype="datetime64[D]")
Observations = dict[str, tuple[np.ndarray, np.ndarray]]  # series → (dates, values)


def day(text: str) -> np.datetime64:
    return np.datetime64(text, "D")


def find_feature(series: str) -> MacroFeature:
    return next(feature for feature in MACRO_FEATURES if feature.series == series)


def find_column(series: str) -> int:
    """The column of the series in the result of ``macro_features``."""
    return MACRO_FEATURES.index(find_feature(series))


@pytest.fixture
def observations() -> Observations:
    """Two years of every series at its frequency; the values of a series are 1, 2, 3 and so on."""
    days = np.arange("2019-01-01", "2021-01-01", dtype="datetime64[D]")
    dates = {"day": days, "week": days[4::7], "month": MONTHS}
    return {
        feature.series: (dates[feature.period], 1.0 + np.arange(len(dates[feature.period])))
        for feature in MACRO_FEATURES
    }


def test_there_are_twelve_distinct_series_and_each_has_a_delay() -> None:
    """SSF-07: twelve indicators."""
    assert len({feature.series for feature in MACRO_FEATURES}) == 12
    assert min(feature.delay_days for feature in MACRO_FEATURES) >= 1


def test_the_delay_of_a_monthly_value_counts_from_the_end_of_the_month_and_of_a_daily_value_from_the_day() -> None:
    """SSF-14: T10Y2Y is the slope of the yield curve. The delays are 20 days for CPIAUCSL and 5 for T10Y2Y."""
    february = np.array([day("2019-02-01")])
    assert availability_dates(find_feature("CPIAUCSL"), february) == [day("2019-02-28") + 20]
    assert availability_dates(find_feature("T10Y2Y"), february) == [day("2019-02-01") + 5]


@pytest.mark.parametrize(
    ("series", "date", "published"),
    [  # real release dates
        ("UNRATE", "2024-12-01", "2025-01-10"),
        ("PAYEMS", "2025-09-01", "2025-11-20"),
        ("UNRATE", "2025-11-01", "2025-12-16"),
        ("CPIAUCSL", "2025-11-01", "2025-12-18"),
        ("PERMIT", "2018-12-01", "2019-02-26"),
        ("PERMIT", "2025-10-01", "2026-01-09"),
        ("ICSA", "2025-09-27", "2025-11-20"),
    ],
)
def test_no_value_is_used_before_its_real_publication(series: str, date: str, published: str) -> None:
    assert availability_dates(find_feature(series), np.array([day(date)])) >= [day(published)]


def test_availability_dates_never_decrease_after_a_shutdown() -> None:
    weeks = np.arange("2025-08-02", "2026-01-31", 7, dtype="datetime64[D]")
    available = availability_dates(find_feature("ICSA"), weeks)
    assert (available[1:] >= available[:-1]).all()
    assert (available >= weeks + 7).all()


def test_a_value_is_used_from_its_availability_date_on_and_not_the_day_before(observations: Observations) -> None:
    """UMCSENT has a delay of 35 days and is used as a level."""
    level = macro_features(observations, SESSIONS)[:, find_column("UMCSENT")]
    available = day("2020-03-31") + 35
    march_value = float(1 + np.flatnonzero(day("2020-03-01") == MONTHS)[0])
    february_value = march_value - 1
    assert level[available == SESSIONS] == march_value
    assert level[available - 1 == SESSIONS] == february_value


def test_a_change_is_over_twelve_months_even_if_a_month_in_between_is_missing(observations: Observations) -> None:
    """CPIAUCSL is the change of the logarithm, 20 days after a month's end; the values of 2019 are 1 to 12."""
    dates, values = observations["CPIAUCSL"]
    is_present = dates != day("2020-02-01")
    without_february = observations | {"CPIAUCSL": (dates[is_present], values[is_present])}
    change = macro_features(without_february, SESSIONS)[:, find_column("CPIAUCSL")]
    is_first_session_with_june = day("2020-06-30") + 20 == SESSIONS
    assert change[is_first_session_with_june] == np.log(18.0) - np.log(6.0)
    is_first_session_after_february = day("2020-03-20") == SESSIONS
    assert change[is_first_session_after_february] == np.log(13.0) - np.log(1.0), "the change of January is the newest"


@pytest.mark.parametrize("cut", ["2020-03-05", "2020-06-01", "2020-10-31"])
def test_values_that_become_available_after_a_session_change_no_bit_of_its_row(
    observations: Observations, cut: str
) -> None:
    whole = macro_features(observations, SESSIONS)
    rng = np.random.default_rng(0)
    altered: Observations = {}
    removed: Observations = {}
    for series, (dates, values) in observations.items():
        is_available = availability_dates(find_feature(series), dates) <= day(cut)
        altered[series] = (dates, np.where(is_available, values, rng.uniform(1, 999, len(dates))))
        removed[series] = (dates[is_available], values[is_available])
    is_past = day(cut) >= SESSIONS
    for changed in (altered, removed):
        features = macro_features(changed, SESSIONS)
        assert features[is_past].tobytes() == whole[is_past].tobytes()
        assert not np.array_equal(features[~is_past], whole[~is_past])


def test_the_real_file_truncated_at_a_date_gives_identical_rows(shared_data: Path) -> None:
    observations = read_fred(shared_data / "macro" / "fred.parquet")
    sessions = np.arange("2019-01-02", "2026-02-01", dtype="datetime64[D]")
    whole = macro_features(observations, sessions)
    assert not np.isnan(whole).any()
    for cut in (day("2020-04-15"), day("2023-12-29"), day("2025-11-03")):
        truncated = {
            series: (dates[dates <= cut], values[dates <= cut]) for series, (dates, values) in observations.items()
        }
        features = macro_features(truncated, sessions)
        assert features[sessions <= cut].tobytes() == whole[sessions <= cut].tobytes()


@pytest.mark.parametrize(
    ("dates", "values", "message"),
    [
        ([], [], "ICSA: .*at least one"),
        (["2020-01-04", "2020-01-04"], [1.0, 2.0], "ICSA: .*distinct"),
        (["2020-01-04", "2020-01-11"], [1.0, 0.0], "ICSA: .*positive"),
    ],
)
def test_the_error_for_an_invalid_series_names_it(
    observations: Observations, dates: list[str], values: list[float], message: str
) -> None:
    invalid = observations | {"ICSA": (np.array(dates, dtype="datetime64[D]"), np.array(values))}
    with pytest.raises(FeatureError, match=message):
        macro_features(invalid, SESSIONS)


def test_the_error_for_a_missing_series_names_it(observations: Observations) -> None:
    del observations["ICSA"]
    with pytest.raises(FeatureError, match="no observations of ICSA"):
        macro_features(observations, SESSIONS)


def test_a_feature_is_nan_before_the_first_value_is_available(observations: Observations) -> None:
    """The first value of VIXCLS has the date 2019-01-01; its delay is one day."""
    sessions = np.array([day("2018-12-31"), day("2019-01-01"), day("2019-01-02")])
    log_level = macro_features(observations, sessions)[:, find_column("VIXCLS")]
    np.testing.assert_array_equal(log_level, [np.nan, np.nan, np.log(1.0)])
