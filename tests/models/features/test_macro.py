"""Macro-economic features: what was out at a session's close, and nothing that came later."""

from __future__ import annotations

import numpy as np
import pytest

from models.features.indicators import FeatureError
from models.features.macro import INDICATORS, Indicator, known_on, macro_features
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
    """Two years of every indicator at its own pace, each value its row's number plus one."""
    days = np.arange("2019-01-01", "2021-01-01", dtype="datetime64[D]")
    grids = {"day": days, "week": days[4::7], "month": MONTHS}
    return {i.series: (grids[i.dated], np.arange(1.0, 1 + len(grids[i.dated]))) for i in INDICATORS}


def test_there_are_twelve_indicators_and_each_is_lagged() -> None:
    assert len({i.series for i in INDICATORS}) == 12
    assert min(i.delay_days for i in INDICATORS) >= 1


def test_a_month_counts_from_its_end_and_a_day_from_itself() -> None:
    assert known_on(indicator("CPIAUCSL"), MONTHS[1:2])[0] == day("2019-02-28") + 20
    assert known_on(indicator("T10Y2Y"), MONTHS[1:2])[0] == day("2019-02-06")


@pytest.mark.parametrize(
    ("series", "period", "published"),
    [  # real release dates; none may be used before
        ("UNRATE", "2024-12-01", "2025-01-10"),
        ("PAYEMS", "2025-09-01", "2025-11-20"),
        ("UNRATE", "2025-11-01", "2025-12-16"),
        ("CPIAUCSL", "2025-11-01", "2025-12-18"),
        ("PERMIT", "2018-12-01", "2019-02-26"),
        ("PERMIT", "2025-10-01", "2026-01-09"),
        ("ICSA", "2025-09-27", "2025-11-20"),
    ],
)
def test_no_value_is_used_before_the_day_it_was_really_published(series: str, period: str, published: str) -> None:
    assert known_on(indicator(series), np.array([day(period)]))[0] >= day(published)


def test_a_value_held_back_by_a_shutdown_never_overtakes_the_next() -> None:
    weeks = np.arange("2025-08-02", "2026-01-31", 7, dtype="datetime64[D]")
    known = known_on(indicator("ICSA"), weeks)
    assert (known[1:] >= known[:-1]).all()
    assert (known >= weeks + 7).all()


def test_a_value_appears_on_the_day_it_was_out_and_not_the_day_before(observations) -> None:
    column = macro_features(observations, SESSIONS)[:, LEVEL["UMCSENT"]]
    out = day("2020-03-31") + 35
    march = float(np.flatnonzero(day("2020-03-01") == MONTHS)[0] + 1)
    assert column[out == SESSIONS] == march
    assert column[out - 1 == SESSIONS] == march - 1


def test_a_growth_is_over_twelve_months_even_where_a_month_was_never_surveyed(observations) -> None:
    cpi = INDICATORS.index(indicator("CPIAUCSL"))
    dates, values = observations["CPIAUCSL"]
    there = dates != day("2020-02-01")
    found = macro_features(observations | {"CPIAUCSL": (dates[there], values[there])}, SESSIONS)[:, cpi]
    june = day("2020-06-30") + 20 == SESSIONS
    assert found[june] == np.log(18.0) - np.log(6.0)
    before = day("2020-03-19") == SESSIONS
    assert found[before] == np.log(13.0) - np.log(1.0), "January's is the newest while February's was never made"


@pytest.mark.parametrize("cut", ["2020-03-05", "2020-06-01", "2020-10-31"])
def test_what_is_not_out_at_a_session_changes_no_bit_of_its_row(observations, cut: str) -> None:
    whole = macro_features(observations, SESSIONS)
    by_name = {i.series: i for i in INDICATORS}
    rng = np.random.default_rng(0)
    altered = {
        name: (dates, np.where(known_on(by_name[name], dates) > day(cut), rng.uniform(1, 999, len(dates)), values))
        for name, (dates, values) in observations.items()
    }
    gone = {
        name: tuple(column[known_on(by_name[name], pair[0]) <= day(cut)] for column in pair)
        for name, pair in observations.items()
    }
    past = day(cut) >= SESSIONS
    for other in (altered, gone):
        again = macro_features(other, SESSIONS)
        assert again[past].tobytes() == whole[past].tobytes()
        assert not np.array_equal(again[~past], whole[~past])


def test_the_real_file_cut_at_a_date_gives_the_same_rows_bit_for_bit(shared_data) -> None:
    observations = read_fred(shared_data / "macro" / "fred.parquet")
    sessions = np.arange("2019-01-02", "2026-02-01", dtype="datetime64[D]")
    whole = macro_features(observations, sessions)
    assert not np.isnan(whole).any()
    for cut in (day("2020-04-15"), day("2023-12-29"), day("2025-11-03")):
        until = {n: tuple(column[pair[0] <= cut] for column in pair) for n, pair in observations.items()}
        again = macro_features(until, sessions)
        assert again[sessions <= cut].tobytes() == whole[sessions <= cut].tobytes()


@pytest.mark.parametrize(
    ("series", "pair", "said"),
    [
        ("ICSA", None, "no observations of ICSA"),
        ("ICSA", ([], []), "dates must be there"),
        ("ICSA", (["2020-01-04", "2020-01-04"], [1.0, 2.0]), "distinct"),
        ("ICSA", (["2020-01-04", "2020-01-11"], [1.0, 0.0]), "positive"),
    ],
)
def test_a_series_that_cannot_be_used_is_named(observations, series, pair, said) -> None:
    given = {k: v for k, v in observations.items() if k != series}
    if pair is not None:
        given[series] = np.array(pair[0], dtype="datetime64[D]"), np.array(pair[1])
    with pytest.raises(FeatureError, match=said):
        macro_features(given, SESSIONS)


def test_before_the_first_value_is_out_there_is_nothing(observations) -> None:
    early = np.array([day("2018-12-31"), day("2019-01-01"), day("2019-01-02")])
    assert np.isnan(macro_features(observations, early)[:2, LEVEL["VIXCLS"]]).all()
    assert macro_features(observations, early)[2, LEVEL["VIXCLS"]] == np.log(1.0)
