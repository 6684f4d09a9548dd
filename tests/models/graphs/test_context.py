"""An event changes a network's forecasts from the bar at whose close it is known, and none before that bar."""

from __future__ import annotations

from dataclasses import replace
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

EVENT_MODELS = ("tgn", "tgat", "jodie", "dyrep")


@pytest.fixture(scope="module", params=EVENT_MODELS)
def fitted(market, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> FittedFold:
    return fit_fold(**market.arguments(request.param), artifact=tmp_path_factory.mktemp("fit") / "m.safetensors")


def add_settlements(market, times_us: list[int]) -> SideInputs:
    """The market's side inputs with a funding settlement added at each of ``times_us``, in microseconds."""
    rows = {"t": np.array(times_us), "symbol": np.array(["B"] * len(times_us)), "rate": np.full(len(times_us), 3e-4)}
    events = concatenate([market.events.events, funding_events(market.features.symbols, rows)])
    return replace(market.side_inputs, events=replace(market.events, events=events))


def forecasts(market, fitted: FittedFold, side_inputs: SideInputs, stop: int | None = None) -> np.ndarray:
    """All forecasts of the test bars of the first fold, from features up to bar ``stop``."""
    features = market.features if stop is None else market.features.rows(0, stop)
    forecast = predict_fold(fitted.artifact, features, side_inputs, market.folds[0])
    return np.concatenate([forecast.returns, forecast.probabilities, forecast.volatility[..., None]], axis=-1)


def test_an_event_at_a_bars_close_counts_from_that_bar_and_one_microsecond_later_from_the_next(market, fitted) -> None:
    closes = market.events.closes.astype(np.int64)
    bar = 6
    before = forecasts(market, fitted, market.side_inputs)
    for delay_us, first_changed in ((0, bar), (1, bar + 1)):
        t = int(closes[market.folds[0].test_start + bar + 1]) + delay_us
        after = forecasts(market, fitted, add_settlements(market, [t]))
        np.testing.assert_array_equal(after[:first_changed], before[:first_changed])
        assert not np.array_equal(after[first_changed], before[first_changed], equal_nan=True)


def test_later_events_and_bars_do_not_change_the_forecast_of_a_bar(market, fitted) -> None:
    start = market.folds[0].test_start
    bar = 9
    last = int(market.events.closes[start + bar + 1].astype(np.int64))
    events = market.events.events
    truncated = replace(
        market.side_inputs,
        events=replace(market.events, events=events[: np.searchsorted(events.t, last, side="right")]),
    )
    whole = forecasts(market, fitted, market.side_inputs)
    np.testing.assert_array_equal(forecasts(market, fitted, truncated)[: bar + 1], whole[: bar + 1])
    np.testing.assert_array_equal(forecasts(market, fitted, truncated, start + bar + 1), whole[: bar + 1])
    assert not np.array_equal(forecasts(market, fitted, truncated)[bar + 1 :], whole[bar + 1 :], equal_nan=True)


def test_events_after_the_last_training_bar_do_not_change_the_fit(market, tmp_path: Path) -> None:
    arguments = market.arguments("tgn")
    closes = market.events.closes.astype(np.int64)
    stop = int(closes[int(market.folds[0].train[-1]) + 1])
    fits = {}
    for delay_us in (0, 1):
        side_inputs = add_settlements(market, [stop + delay_us])
        fits[delay_us] = fit_fold(**arguments | {"side_inputs": side_inputs}, artifact=tmp_path / str(delay_us))
    plain = fit_fold(**arguments, artifact=tmp_path / "plain")
    assert fits[1].sha256 == plain.sha256 != fits[0].sha256


def test_batches_share_one_copy_of_the_events(market) -> None:
    side_inputs = SideInputs(events=market.events)
    data = FoldData(market.arguments()["config"], market.features, market.labels, side_inputs, market.folds[0])
    batches = [batch for batch, _ in data.train_dataloader()]
    assert len(batches) > 1
    assert len({batch.events.features.data_ptr() for batch in batches if batch.events is not None}) == 1
    assert {batch.events.spans.shape[:2] == batch.mask.shape[:2] for batch in batches if batch.events} == {True}


def test_an_overnight_event_belongs_to_the_bar_of_the_next_session() -> None:
    opens = bar_opens("XNYS", "1d", np.datetime64("2024-07-01").item(), np.datetime64("2024-07-09").item())
    closes = bar_closes("XNYS", "1d", opens)  # 3 July closes early, 4 July is a holiday
    t = np.concatenate([closes, closes + np.timedelta64(1, "us"), closes + np.timedelta64(5, "h")])
    t = np.sort(t.astype("datetime64[us]").astype(np.int64))
    rows = {"t": t, "symbol": np.array(["A"] * len(t)), "rate": np.zeros(len(t))}
    by_bar = BarEvents.from_events(funding_events(("A",), rows), opens, closes)
    assert by_bar.spans.tolist() == [[0, 1], [1, 4], [4, 7], [7, 10], [10, 13]]
    later = by_bar.for_bars(opens[2:4])
    assert later.spans.tolist() == [[0, 3], [3, 6]]
    assert (later.age(86_400_000_000) >= 0).all() and later.events.nodes == market_nodes(("A",))


def test_bars_that_are_not_successive_bars_of_the_grid_are_refused(market) -> None:
    for ts in (market.features.ts[[0, 2]], market.features.ts[:3] + np.timedelta64(1, "h")):
        with pytest.raises(
            GraphError, match="are not successive ones of the events' 190 bars; give both the same grid"
        ):
            market.events.for_bars(ts)
