"""Indicators equal their definitions, and later bars never change earlier rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from models.features.indicators import BAR_COLUMNS, FEATURES, FeatureError, compute_features, log_total_return_index
from models.panel import Panel
from models.sessions import HOUR, bar_closes, bar_opens

MakeBars = Callable[..., Panel]
WARM_UP_BARS = {  # the number of a symbol's bars before the feature's first value, by its definition
    "return_1": 1,
    "return_5": 5,
    "return_20": 20,
    "return_60": 60,
    "volatility_20": 20,
    "volatility_60": 60,
    "rsi_14": 14,
    "macd": 33,
    "macd_signal": 33,
    "macd_histogram": 33,
    "bollinger_percent_b": 19,
    "bollinger_width": 19,
    "atr_14": 14,
    "obv_20": 20,
    "volume_z_20": 19,
    "range_1": 0,
    "gap_1": 1,
    "hour_sin": 0,
    "hour_cos": 0,
    "weekday_sin": 0,
    "weekday_cos": 0,
    "funding_rate": 0,
}


def hourly_features(bars: Panel) -> Panel:
    """Features of bars that close one hour after their open."""
    return compute_features(bars, bars.ts + HOUR)


def make_bars(close: list[float] | np.ndarray, **columns: list[float] | np.ndarray) -> Panel:
    """Hourly bars of one asset without dividends; every price is the close unless ``columns`` contains it."""
    close = np.asarray(close, dtype=float)
    by_column = {
        **dict.fromkeys(("open", "high", "low", "close"), close),
        "volume": np.full(len(close), 100.0),
        "total_return": np.concatenate(([np.nan], close[1:] / close[:-1] - 1)),
        "funding_rate": np.zeros(len(close)),
        **columns,
    }
    ts = np.datetime64("2024-01-01T00:00", "us") + np.arange(len(close)) * HOUR
    values = np.stack([np.asarray(by_column[name], dtype=float) for name in BAR_COLUMNS], axis=-1)[:, None, :]
    return Panel(ts, ("A",), BAR_COLUMNS, values, np.ones((len(close), 1), dtype=bool))


def feature_of_first_asset(bars: Panel, name: str) -> np.ndarray:
    """The feature ``name`` of the first asset, (t,)."""
    return hourly_features(bars).column(name)[:, 0]


def assert_bars_from_cut_on_change_no_earlier_row(bars: Panel, cut: int) -> None:
    """The features of the bars before position ``cut`` are the same with and without the bars from ``cut`` on."""
    whole = hourly_features(bars).slice_bars(0, cut)
    truncated = hourly_features(bars.slice_bars(0, cut))
    np.testing.assert_array_equal(truncated.values, whole.values)
    np.testing.assert_array_equal(truncated.mask, whole.mask)


def test_a_dividend_counts_as_return_and_not_as_a_gap_or_as_range() -> None:
    """S4-28: a dividend of 5 counts as return and not as a gap."""
    bars = make_bars(
        [100, 110, 99],
        open=[100, 105, 104],
        high=[101, 112, 106],
        low=[98, 104, 97],
        total_return=[np.nan, 0.1, (99 + 5) / 110 - 1],
    )
    np.testing.assert_allclose(feature_of_first_asset(bars, "return_1"), [np.nan, np.log(1.1), np.log(104 / 110)])
    np.testing.assert_allclose(
        feature_of_first_asset(bars, "gap_1"), [np.nan, np.log(105 / 100), np.log(104 / 99 * 104 / 110)]
    )
    np.testing.assert_allclose(feature_of_first_asset(bars, "range_1"), [3 / 100, 8 / 110, 9 / 99])


def test_longer_returns_are_sums_of_one_bar_returns(random_bars: MakeBars) -> None:
    features = hourly_features(random_bars(90, 1))
    one_bar_returns = features.column("return_1")[:, 0]
    for n_bars in (5, 20, 60):
        np.testing.assert_allclose(features.column(f"return_{n_bars}")[-1, 0], one_bar_returns[-n_bars:].sum())


def test_volatility_is_the_standard_deviation_of_the_last_returns(random_bars: MakeBars) -> None:
    features = hourly_features(random_bars(90, 1))
    one_bar_returns = features.column("return_1")[:, 0]
    for n_bars in (20, 60):
        expected = one_bar_returns[-n_bars:].std()
        np.testing.assert_allclose(features.column(f"volatility_{n_bars}")[-1, 0], expected, rtol=1e-9)


def test_rsi_is_wilders_smoothed_share_of_gains(random_bars: MakeBars) -> None:
    """HYB-18: the first means are simple means of 14 bars; each later mean is (13 · last mean + new value) / 14."""
    bars = random_bars(60, 1)
    price = np.exp(log_total_return_index(bars))[:, 0]
    change = np.diff(price)
    gain = np.maximum(change, 0)
    loss = np.maximum(-change, 0)
    mean_gain = gain[:14].mean()
    mean_loss = loss[:14].mean()
    expected = [mean_gain / (mean_gain + mean_loss)]
    for k in range(14, len(change)):
        mean_gain = (13 * mean_gain + gain[k]) / 14
        mean_loss = (13 * mean_loss + loss[k]) / 14
        expected.append(mean_gain / (mean_gain + mean_loss))
    np.testing.assert_allclose(feature_of_first_asset(bars, "rsi_14")[14:], expected, rtol=1e-9)


def test_rsi_of_a_price_that_only_rises_is_one() -> None:
    np.testing.assert_allclose(feature_of_first_asset(make_bars(np.arange(100, 120)), "rsi_14")[14:], 1.0)


def test_macd_is_the_fast_average_minus_the_slow_average_over_the_price(random_bars: MakeBars) -> None:
    """HYB-18: periods of 12, 26 and 9 bars.

    The fast and the slow average start at bar 25, where the slow one has 26 bars; the average of their difference
    starts 8 bars later, at bar 33.
    """

    def exponential_average(x: np.ndarray, period: int, first: int) -> np.ndarray:
        """The exponential average of x (t,), which starts at position ``first`` as the mean of ``period`` values."""
        average = np.full(len(x), np.nan)
        average[first] = x[first - period + 1 : first + 1].mean()
        for k in range(first + 1, len(x)):
            average[k] = average[k - 1] + 2 / (period + 1) * (x[k] - average[k - 1])
        return average

    bars = random_bars(80, 1)
    price = np.exp(log_total_return_index(bars))[:, 0]
    line = exponential_average(price, 12, first=25) - exponential_average(price, 26, first=25)
    signal = exponential_average(line, 9, first=33)
    np.testing.assert_allclose(feature_of_first_asset(bars, "macd")[33:], (line / price)[33:], rtol=1e-9)
    np.testing.assert_allclose(feature_of_first_asset(bars, "macd_signal")[33:], (signal / price)[33:], rtol=1e-9)
    np.testing.assert_allclose(
        feature_of_first_asset(bars, "macd_histogram")[33:], ((line - signal) / price)[33:], rtol=1e-7
    )


def test_bollinger_bands_are_two_standard_deviations_around_the_mean() -> None:
    """HYB-18: nineteen bars at 100 and one at 120 have the mean 101 and the standard deviation √19."""
    bars = make_bars([100.0] * 19 + [120.0])
    mean = 101
    deviation = 19**0.5
    lower_band = mean - 2 * deviation
    width = 4 * deviation
    np.testing.assert_allclose(feature_of_first_asset(bars, "bollinger_percent_b")[-1], (120 - lower_band) / width)
    np.testing.assert_allclose(feature_of_first_asset(bars, "bollinger_width")[-1], width / mean)


def test_average_true_range_includes_the_gap_from_the_previous_close() -> None:
    """HYB-26: a bar whose high is 1 above its close, which is 10 above the previous close, has a true range of 11."""
    close = 100.0 + 10 * np.arange(20)
    bars = make_bars(close, high=close + 1, low=close - 1)
    np.testing.assert_allclose(feature_of_first_asset(bars, "atr_14")[14:], 11 / close[14:])


def test_on_balance_volume_is_the_volume_of_rises_minus_the_volume_of_falls_over_the_total_volume() -> None:
    """HYB-18: of 20 bars of equal volume, 15 rise and 5 fall."""
    changes = np.array([1, 1, 1, -1] * 5)
    bars = make_bars(100 + np.concatenate(([0], np.cumsum(changes))))
    np.testing.assert_allclose(feature_of_first_asset(bars, "obv_20")[20], (15 - 5) / 20)
    assert np.isnan(feature_of_first_asset(bars, "obv_20")[19])


def test_bars_without_volume_give_exact_zeros() -> None:
    # the last 40 bars have no volume, so windows of 20 bars contain none from bar 60 on
    volume = np.concatenate((np.random.default_rng(1).lognormal(20, 2, 40), np.zeros(40)))
    bars = make_bars(np.random.default_rng(2).lognormal(0, 0.1, 80), volume=volume)
    np.testing.assert_array_equal(feature_of_first_asset(bars, "obv_20")[60:], 0.0)
    np.testing.assert_allclose(feature_of_first_asset(bars, "volume_z_20")[60:], 0.0, atol=1e-6)


def test_volume_z_is_in_standard_deviations_of_log_volume() -> None:
    log_volume = np.concatenate((np.zeros(19), [5.0]))
    bars = make_bars(np.full(20, 100.0), volume=np.expm1(log_volume))
    np.testing.assert_allclose(
        feature_of_first_asset(bars, "volume_z_20")[-1], (5 - log_volume.mean()) / log_volume.std()
    )


def test_a_constant_price_is_in_the_middle_of_its_bands_and_has_finite_indicators() -> None:
    bars = make_bars([100.0] * 40)
    np.testing.assert_array_equal(feature_of_first_asset(bars, "bollinger_percent_b")[19:], 0.5)
    for name in ("rsi_14", "atr_14", "macd"):
        assert np.isfinite(feature_of_first_asset(bars, name)[-1])


def test_each_feature_starts_after_its_warm_up(random_bars: MakeBars) -> None:
    """MAM-21, TGN-16: the features of a bar are fixed, and each is known as soon as its definition has enough bars."""
    features = hourly_features(random_bars(70, 1))
    first_bar = {name: int(np.isfinite(features.column(name)[:, 0]).argmax()) for name in FEATURES}
    assert first_bar == WARM_UP_BARS
    assert np.isfinite(features.values[60:]).all()


def test_hour_and_weekday_are_computed_from_the_close() -> None:
    """TGN-20: bar 0 opens at 23:00 on a Sunday and closes at 00:00 on Monday; bar 6 closes at 06:00."""
    bars = replace(make_bars(np.full(8, 100.0)), ts=np.datetime64("2024-01-07T23:00", "us") + np.arange(8) * HOUR)
    for name, at_midnight, at_six in (("hour_sin", 0, 1), ("hour_cos", 1, 0), ("weekday_sin", 0, 0)):
        np.testing.assert_allclose(feature_of_first_asset(bars, name)[[0, 6]], [at_midnight, at_six], atol=1e-12)
    weekday = 2  # days after Monday
    wednesday = replace(bars, ts=bars.ts + np.timedelta64(weekday, "D"))
    np.testing.assert_allclose(feature_of_first_asset(wednesday, "weekday_sin"), np.sin(2 * np.pi * weekday / 7))
    np.testing.assert_allclose(feature_of_first_asset(wednesday, "weekday_cos"), np.cos(2 * np.pi * weekday / 7))


def test_hour_of_daily_bars_does_not_move_with_daylight_saving() -> None:
    opens = bar_opens("XNYS", "1d", date(2024, 3, 7), date(2024, 3, 13))
    bars = replace(make_bars(np.full(len(opens), 100.0)), ts=opens)
    features = compute_features(bars, bar_closes("XNYS", "1d", opens))
    np.testing.assert_array_equal(features.column("hour_sin"), 0.0)
    np.testing.assert_array_equal(features.column("hour_cos"), 1.0)
    assert len(np.unique(features.column("weekday_sin"))) > 1


def test_an_unknown_funding_rate_is_nan_and_not_zero() -> None:
    bars = make_bars([100, 101, 102], funding_rate=[np.nan, 0.0, -0.0003])
    np.testing.assert_array_equal(feature_of_first_asset(bars, "funding_rate"), [np.nan, 0.0, -0.0003])


def test_features_do_not_depend_on_the_price_level(random_bars: MakeBars) -> None:
    """As after a split of 8 to 1, for which a provider adjusts all prices."""
    bars = random_bars(120, 1)
    price_columns = [BAR_COLUMNS.index(name) for name in ("open", "high", "low", "close")]
    split = replace(bars, values=bars.values.copy())
    split.values[:, :, price_columns] /= 8
    np.testing.assert_allclose(hourly_features(split).values, hourly_features(bars).values, rtol=1e-9, atol=1e-12)


def test_missing_bars_are_skipped_and_not_filled(random_bars: MakeBars) -> None:
    bars = random_bars(200, 1, seed=3, holes=0.2)
    mask = bars.mask[:, 0]
    packed = Panel(bars.ts[mask], bars.symbols, bars.columns, bars.values[mask], bars.mask[mask])
    np.testing.assert_array_equal(hourly_features(bars).values[mask], hourly_features(packed).values)
    assert np.isnan(hourly_features(bars).values[~mask]).all()


def test_the_index_of_an_asset_listed_late_is_one_at_its_first_bar(random_bars: MakeBars) -> None:
    bars = random_bars(90, 2, late=True)
    late_asset = 1
    first_bar = 30  # a third of the bars, see make_bars
    index = np.exp(log_total_return_index(bars))
    assert np.isnan(index[:first_bar, late_asset]).all()
    np.testing.assert_array_equal(index[[0, first_bar], [0, late_asset]], 1.0)
    returns = hourly_features(bars).column("return_1")[:, late_asset]
    assert np.isnan(returns[: first_bar + 1]).all()
    assert np.isfinite(returns[first_bar + 1 :]).all()


def test_an_asset_with_at_most_one_bar_has_no_return() -> None:
    bars = make_bars([100.0, 101.0])
    for has_bar in ([False, False], [True, False]):
        mask = np.array(has_bar)[:, None]
        values = np.where(mask[:, :, None], bars.values, np.nan)
        short = Panel(bars.ts, bars.symbols, bars.columns, values, mask)
        assert np.isnan(hourly_features(short).column("return_1")).all()


def test_the_features_of_an_asset_do_not_depend_on_other_assets(random_bars: MakeBars) -> None:
    bars = random_bars(150, 5, seed=4, holes=0.1, late=True)
    asset = 3
    selected = slice(asset, asset + 1)
    alone = Panel(bars.ts, bars.symbols[selected], bars.columns, bars.values[:, selected], bars.mask[:, selected])
    np.testing.assert_array_equal(hourly_features(alone).values[:, 0], hourly_features(bars).values[:, asset])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), cut=st.integers(1, 239), holes=st.sampled_from([0.0, 0.05, 0.5]), late=st.booleans()
)
def test_later_bars_never_change_a_row(random_bars: MakeBars, seed: int, cut: int, holes: float, late: bool) -> None:
    assert_bars_from_cut_on_change_no_earlier_row(random_bars(240, 3, seed=seed, holes=holes, late=late), cut)


def test_later_bars_never_change_a_row_of_the_recorded_stocks(tape_stocks: MakeBars) -> None:
    bars = tape_stocks()
    whole = compute_features(bars, bar_closes("XNYS", "1d", bars.ts))
    assert np.isfinite(whole.values[-1]).all()
    for end in (date(2019, 1, 2), date(2020, 12, 15), date(2021, 5, 31), date(2023, 11, 24), date(2024, 6, 27)):
        early_bars = tape_stocks(end)
        truncated = compute_features(early_bars, bar_closes("XNYS", "1d", early_bars.ts))
        assert 0 < len(early_bars) < len(bars)
        np.testing.assert_array_equal(truncated.values, whole.slice_bars(0, len(early_bars)).values)


def test_later_bars_never_change_a_row_of_the_recorded_perpetuals(tape_perpetuals: MakeBars) -> None:
    bars = tape_perpetuals()
    assert not bars.mask.all() and bars.mask[-1].all()
    for cut in np.random.default_rng(0).integers(1, len(bars), 6):
        assert_bars_from_cut_on_change_no_earlier_row(bars, int(cut))


@pytest.mark.parametrize(
    ("column", "value"), [("close", np.nan), ("open", 0.0), ("low", -1.0), ("volume", -5.0), ("total_return", -1.0)]
)
def test_the_error_for_an_impossible_bar_names_symbol_time_and_column(
    random_bars: MakeBars, column: str, value: float
) -> None:
    bars = random_bars(5, 2)
    second_asset = 1
    bars.values[2:4, second_asset, BAR_COLUMNS.index(column)] = value  # two bars, the first one at 02:00
    with pytest.raises(FeatureError, match=f"S001 at 2024-01-01T02:00:00.000000: {column} is {value}, and 1 more"):
        hourly_features(bars)


def test_the_error_for_a_missing_column_names_it(random_bars: MakeBars) -> None:
    bars = random_bars(5, 1)
    with pytest.raises(FeatureError, match="no column funding_rate"):
        hourly_features(Panel(bars.ts, bars.symbols, BAR_COLUMNS[:-1], bars.values[:, :, :-1], bars.mask))


def test_changed_global_settings_of_ta_lib_are_refused(random_bars: MakeBars) -> None:
    talib.set_unstable_period("RSI", 30)
    try:
        with pytest.raises(FeatureError, match="unstable period"):
            hourly_features(random_bars(5, 1))
    finally:
        talib.set_unstable_period("RSI", 0)
