"""Macroeconomic features: only values that were published by a session's close are used."""

from __future__ import annotations

import numpy as np
import pytest

from models.features.indicators import FeatureError
from models.features.macro import INDICATORS, Indicator, availability_dates, macro_features
from tasks.macro import read_fred

MONTHS = np.arange("2019-01", "2021-01", dtype="datetime64[M]").astype("datetime64[D]")
SESSIONS = np.arange("2020-01-01", "2020-12-01", dtype="datetime64[D]")
LEVEL = {"VIXCLS": 0, "T10Y2Y": 1, "UMCSENT": 11}


def day(text: str) -> np.datetime64:
    return np.datetime64(text, "D")


def indicator(series: str) -> Indicator:
    return next(i for i in INDICATORS if i.series == series)


@pytest.fixture
def observations() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two years of every indicator at its frequency; the k-th value of a series is k."""
    days = np.arange("2019-01-01", "2021-01-01", dtype="datetime64[D]")
    grids = {"day": days, "week": days[4::7], "month": MONTHS}
    return {i.series: (grids[i.dated], np.arange(1.0, 1 + len(grids[i.dated]))) for i in INDICATORS}


def test_there_are_twelve_distinct_series_and_each_has_a_delay() -> None:
    """SSF-07: twelve indicators."""
    assert len({i.series for i in INDICATORS}) == 12
    assert min(i.delay_days for i in INDICATORS) >= 1


def test_the_delay_counts_from_the_end_of_the_month_or_from_the_day() -> None:
    """SSF-14: T10Y2Y is the slope of the yield curve."""
    assert availability_dates(indicator("CPIAUCSL"), MONTHS[1:2])[0] == day("2019-02-28") + 20
    assert availability_dates(indicator("T10Y2Y"), MONTHS[1:2])[0] == day("2019-02-06")


@pytest.mark.parametrize(
    ("series", "period", "published"),
    [  # real release dates; no value may be used before its release
        ("UNRATE", "2024-12-01", "2025-01-10"),
        ("PAYEMS", "2025-09-01", "2025-11-20"),
        ("UNRATE", "2025-11-01", "2025-12-16"),
        ("CPIAUCSL", "2025-11-01", "2025-12-18"),
        ("PERMIT", "2018-12-01", "2019-02-26"),
        ("PERMIT", "2025-10-01", "2026-01-09"),
        ("ICSA", "2025-09-27", "2025-11-20"),
    ],
)
def test_no_value_is_used_before_its_real_publication(series: str, period: str, published: str) -> None:
    assert availability_dates(indicator(series), np.array([day(period)]))[0] >= day(published)


def test_a_value_delayed_by_a_shutdown_is_not_available_after_its_successor() -> None:
    weeks = np.arange("2025-08-02", "2026-01-31", 7, dtype="datetime64[D]")
    available = availability_dates(indicator("ICSA"), weeks)
    assert (available[1:] >= available[:-1]).all()
    assert (available >= weeks + 7).all()


def test_a_value_is_used_from_its_availability_date_on_and_not_the_day_before(observations) -> None:
    column = macro_features(observations, SESSIONS)[:, LEVEL["UMCSENT"]]
    available = day("2020-03-31") + 35
    march = float(np.flatnonzero(day("2020-03-01") == MONTHS)[0] + 1)
    assert column[available == SESSIONS] == march
    assert column[available - 1 == SESSIONS] == march - 1


def test_a_growth_is_over_twelve_months_even_if_a_month_in_between_is_missing(observations) -> None:
    cpi = INDICATORS.index(indicator("CPIAUCSL"))
    dates, values = observations["CPIAUCSL"]
    is_present = dates != day("2020-02-01")
    without_february = observations | {"CPIAUCSL": (dates[is_present], values[is_present])}
    growth = macro_features(without_february, SESSIONS)[:, cpi]
    june = day("2020-06-30") + 20 == SESSIONS
    assert growth[june] == np.log(18.0) - np.log(6.0)
    march = day("2020-03-19") == SESSIONS
    assert growth[march] == np.log(13.0) - np.log(1.0), "January's value is the newest, because February's is missing"


@pytest.mark.parametrize("cut", ["2020-03-05", "2020-06-01", "2020-10-31"])
def test_values_that_are_not_available_at_a_session_change_no_bit_of_its_row(observations, cut: str) -> None:
    whole = macro_features(observations, SESSIONS)
    by_name = {i.series: i for i in INDICATORS}
    rng = np.random.default_rng(0)
    altered = {
        name: (
            dates,
            np.where(availability_dates(by_name[name], dates) > day(cut), rng.uniform(1, 999, len(dates)), values),
        )
        for name, (dates, values) in observations.items()
    }
    removed = {
        name: tuple(column[availability_dates(by_name[name], pair[0]) <= day(cut)] for column in pair)
        for name, pair in observations.items()
    }
    past = day(cut) >= SESSIONS
    for changed in (altered, removed):
        features = macro_features(changed, SESSIONS)
        assert features[past].tobytes() == whole[past].tobytes()
        assert not np.array_equal(features[~past], whole[~past])


def test_the_real_file_truncated_at_a_date_gives_identical_rows(shared_data) -> None:
    observations = read_fred(shared_data / "macro" / "fred.parquet")
    sessions = np.arange("2019-01-02", "2026-02-01", dtype="datetime64[D]")
    whole = macro_features(observations, sessions)
    assert not np.isnan(whole).any()
    for cut in (day("2020-04-15"), day("2023-12-29"), day("2025-11-03")):
        truncated = {n: tuple(column[pair[0] <= cut] for column in pair) for n, pair in observations.items()}
        features = macro_features(truncated, sessions)
        assert features[sessions <= cut].tobytes() == whole[sessions <= cut].tobytes()


@pytest.mark.parametrize(
    ("series", "pair", "message"),
    [
        ("ICSA", None, "no observations of ICSA"),
        ("ICSA", ([], []), "dates must be there"),
        ("ICSA", (["2020-01-04", "2020-01-04"], [1.0, 2.0]), "distinct"),
        ("ICSA", (["2020-01-04", "2020-01-11"], [1.0, 0.0]), "positive"),
    ],
)
def test_the_error_of_an_unusable_series_names_it(observations, series, pair, message) -> None:
    changed = {k: v for k, v in observations.items() if k != series}
    if pair is not None:
        changed[series] = np.array(pair[0], dtype="datetime64[D]"), np.array(pair[1])
    with pytest.raises(FeatureError, match=message):
        macro_features(changed, SESSIONS)


def test_a_feature_is_nan_before_the_first_value_is_available(observations) -> None:
    early = np.array([day("2018-12-31"), day("2019-01-01"), day("2019-01-02")])
    assert np.isnan(macro_features(observations, early)[:2, LEVEL["VIXCLS"]]).all()
    assert macro_features(observations, early)[2, LEVEL["VIXCLS"]] == np.log(1.0)
