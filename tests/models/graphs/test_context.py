"""An event changes a network's forecasts from the first bar that closes at or after it, and no earlier forecast."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from models.graphs.context import BarEvents, SideInputs
from models.graphs.events import concatenate
from models.graphs.market_events import funding_events, market_nodes
from models.graphs.snapshot import GraphError
from models.sessions import bar_closes, bar_opens
from models.training.data import FoldData
from models.training.fit import FittedFold, fit_fold, predict_fold

DAY_US = 86_400_000_000
EVENT_MODELS = ("tgn", "tgat", "jodie", "dyrep")


@pytest.fixture(scope="module", params=EVENT_MODELS)
def fitted(market, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> FittedFold:
    """The fit of one event network on the first fold of the synthetic market."""
    return fit_fold(**market.arguments(request.param), artifact=tmp_path_factory.mktemp("fit") / "m.safetensors")


def add_settlements(market, times_us: list[int]) -> SideInputs:
    """The market's side inputs, with a funding settlement of asset B added at each of ``times_us`` since 1970."""
    columns = {"t": np.array(times_us), "symbol": np.array(["B"] * len(times_us)), "rate": np.full(len(times_us), 3e-4)}
    events = concatenate([market.events.events, funding_events(market.features.symbols, columns)])
    return replace(market.side_inputs, events=replace(market.events, events=events))


def forecast_test_bars(market, fitted: FittedFold, side_inputs: SideInputs, stop: int | None = None) -> np.ndarray:
    """All outputs (t, n, outputs) for the first fold's test bars, from the features of the bars before ``stop``."""
    features = market.features if stop is None else market.features.slice_bars(0, stop)
    forecast = predict_fold(fitted.artifact, features, side_inputs, market.folds[0])
    return np.concatenate([forecast.returns, forecast.probabilities, forecast.volatility[..., None]], axis=-1)


def close_us(market, bar: int) -> int:
    """The close of a bar of the market, in microseconds since 1970; entry 0 of ``close_times`` is no bar's close."""
    return int(market.events.close_times[bar + 1].astype(np.int64))


def test_an_event_at_a_bars_close_counts_from_that_bar_and_one_microsecond_later_from_the_next(market, fitted) -> None:
    test_bar = 6  # counted from the first test bar
    unchanged = forecast_test_bars(market, fitted, market.side_inputs)
    for delay_us, first_changed in ((0, test_bar), (1, test_bar + 1)):
        t = close_us(market, market.folds[0].test_start + test_bar) + delay_us
        changed = forecast_test_bars(market, fitted, add_settlements(market, [t]))
        np.testing.assert_array_equal(changed[:first_changed], unchanged[:first_changed])
        assert not np.array_equal(changed[first_changed], unchanged[first_changed], equal_nan=True)


def test_later_events_and_bars_do_not_change_the_forecast_of_a_bar(market, fitted) -> None:
    n_bars = 10  # test bars before the cut
    stop = market.folds[0].test_start + n_bars
    events = market.events.events
    n_events = np.searchsorted(events.t, close_us(market, stop - 1), side="right")
    truncated = replace(market.side_inputs, events=replace(market.events, events=events[:n_events]))
    whole = forecast_test_bars(market, fitted, market.side_inputs)
    without_later_events = forecast_test_bars(market, fitted, truncated)
    without_later_events_and_bars = forecast_test_bars(market, fitted, truncated, stop)
    np.testing.assert_array_equal(without_later_events[:n_bars], whole[:n_bars])
    np.testing.assert_array_equal(without_later_events_and_bars, whole[:n_bars])
    assert not np.array_equal(without_later_events[n_bars:], whole[n_bars:], equal_nan=True)


def test_events_after_the_last_training_bar_do_not_change_the_fit(market, tmp_path: Path) -> None:
    arguments = market.arguments("tgn")
    last_close_us = close_us(market, int(market.folds[0].train[-1]))
    fits = {}
    for delay_us in (0, 1):
        side_inputs = add_settlements(market, [last_close_us + delay_us])
        fits[delay_us] = fit_fold(**arguments | {"side_inputs": side_inputs}, artifact=tmp_path / str(delay_us))
    unchanged = fit_fold(**arguments, artifact=tmp_path / "unchanged")
    assert fits[1].sha256 == unchanged.sha256
    assert fits[0].sha256 != unchanged.sha256


def test_batches_share_one_copy_of_the_events(market) -> None:
    side_inputs = SideInputs(events=market.events)
    data = FoldData(market.arguments()["config"], market.features, market.labels, side_inputs, market.folds[0])
    batches = [batch for batch, _ in data.train_dataloader()]
    events = [batch.events for batch in batches if batch.events is not None]
    assert len(events) == len(batches) > 1
    assert len({batch_events.features.data_ptr() for batch_events in events}) == 1
    for batch, batch_events in zip(batches, events, strict=True):
        assert batch_events.event_ranges.shape[:2] == batch.mask.shape[:2]


def test_an_overnight_event_belongs_to_the_bar_of_the_next_session() -> None:
    """Three events per bar: at its close, a microsecond later, and five hours later, when the market is closed."""
    open_times = bar_opens("XNYS", "1d", date(2024, 7, 1), date(2024, 7, 9))
    close_times = bar_closes("XNYS", "1d", open_times)  # 3 July closes early, 4 July is a holiday
    t = np.concatenate([close_times, close_times + np.timedelta64(1, "us"), close_times + np.timedelta64(5, "h")])
    t = np.sort(t.astype("datetime64[us]").astype(np.int64))
    columns = {"t": t, "symbol": np.array(["A"] * len(t)), "rate": np.zeros(len(t))}
    by_bar = BarEvents.from_events(funding_events(("A",), columns), open_times, close_times)
    # the first bar has only the event at its close; each other bar also has the two overnight events before it
    assert by_bar.event_ranges.tolist() == [[0, 1], [1, 4], [4, 7], [7, 10], [10, 13]]
    two_bars = by_bar.for_bars(open_times[2:4])
    assert two_bars.event_ranges.tolist() == [[0, 3], [3, 6]]
    assert (two_bars.age_in_bars(DAY_US) >= 0).all()
    assert two_bars.events.nodes == market_nodes(("A",))


def test_bars_that_are_not_successive_bars_of_the_grid_are_refused(market) -> None:
    for ts in (market.features.ts[[0, 2]], market.features.ts[:3] + np.timedelta64(1, "h")):
        with pytest.raises(
            GraphError, match=r"are not successive bars of the 190 bars of the events; .* the same grid"
        ):
            market.events.for_bars(ts)
