"""Events on their way to a network's forecasts: each from the bar on at whose close it is known, and no earlier."""

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


def settled_at(market, instants: list[int]) -> SideInputs:
    """The market's side_inputs with a funding settlement at each of the ``instants``, in microseconds."""
    rows = {"t": np.array(instants), "symbol": np.array(["B"] * len(instants)), "rate": np.full(len(instants), 3e-4)}
    more = concatenate([market.events.events, funding_events(market.features.symbols, rows)])
    return replace(market.side_inputs, events=replace(market.events, events=more))


def forecasts(market, fitted: FittedFold, around: SideInputs, stop: int | None = None) -> np.ndarray:
    features = market.features if stop is None else market.features.rows(0, stop)
    made = predict_fold(fitted.artifact, features, around, market.folds[0])
    return np.concatenate([made.returns, made.probabilities, made.volatility[..., None]], axis=-1)


def test_an_event_at_a_bars_close_counts_there_and_one_microsecond_later_from_the_next_bar_on(market, fitted) -> None:
    close, at = market.events.closes.astype(np.int64), 6
    before = forecasts(market, fitted, market.side_inputs)
    for late, first in ((0, at), (1, at + 1)):
        t = int(close[market.folds[0].test_start + at + 1]) + late
        after = forecasts(market, fitted, settled_at(market, [t]))
        np.testing.assert_array_equal(after[:first], before[:first])
        assert not np.array_equal(after[first], before[first], equal_nan=True)


def test_forecasts_of_a_bar_are_the_same_whatever_happened_after_it(market, fitted) -> None:
    start, at = market.folds[0].test_start, 9
    last = int(market.events.closes[start + at + 1].astype(np.int64))
    events = market.events.events
    cut = replace(
        market.side_inputs,
        events=replace(market.events, events=events[: np.searchsorted(events.t, last, side="right")]),
    )
    whole = forecasts(market, fitted, market.side_inputs)
    np.testing.assert_array_equal(forecasts(market, fitted, cut)[: at + 1], whole[: at + 1])
    np.testing.assert_array_equal(forecasts(market, fitted, cut, start + at + 1), whole[: at + 1])
    assert not np.array_equal(forecasts(market, fitted, cut)[at + 1 :], whole[at + 1 :], equal_nan=True)


def test_events_after_the_last_training_bar_change_no_fit(market, tmp_path: Path) -> None:
    arguments, close = market.arguments("tgn"), market.events.closes.astype(np.int64)
    stop = int(close[int(market.folds[0].train[-1]) + 1])
    fits = {
        late: fit_fold(**arguments | {"side_inputs": settled_at(market, [stop + late])}, artifact=tmp_path / str(late))
        for late in (0, 1)
    }
    plain = fit_fold(**arguments, artifact=tmp_path / "plain")
    assert fits[1].sha256 == plain.sha256 != fits[0].sha256


def test_batches_share_one_copy_of_the_events(market) -> None:
    around = SideInputs(events=market.events)
    data = FoldData(market.arguments()["config"], market.features, market.labels, around, market.folds[0])
    batches = [batch for batch, _ in data.train_dataloader()]
    assert len(batches) > 1
    assert len({batch.events.features.data_ptr() for batch in batches if batch.events is not None}) == 1
    assert {batch.events.spans.shape[:2] == batch.mask.shape[:2] for batch in batches if batch.events} == {True}


def test_what_happened_overnight_belongs_to_the_next_session_and_to_none_before_it_closed() -> None:
    opens = bar_opens("XNYS", "1d", np.datetime64("2024-07-01").item(), np.datetime64("2024-07-09").item())
    closes = bar_closes("XNYS", "1d", opens)  # 3 July closes early, 4 July is a holiday
    t = np.concatenate([closes, closes + np.timedelta64(1, "us"), closes + np.timedelta64(5, "h")])
    t = np.sort(t.astype("datetime64[us]").astype(np.int64))
    rows = {"t": t, "symbol": np.array(["A"] * len(t)), "rate": np.zeros(len(t))}
    by_bar = BarEvents.of(funding_events(("A",), rows), opens, closes)
    assert by_bar.spans.tolist() == [[0, 1], [1, 4], [4, 7], [7, 10], [10, 13]]
    later = by_bar.of_bars(opens[2:4])
    assert later.spans.tolist() == [[0, 3], [3, 6]]
    assert (later.age(86_400_000_000) >= 0).all() and later.events.nodes == market_nodes(("A",))


def test_bars_that_are_not_successive_ones_of_the_grid_are_refused(market) -> None:
    for ts in (market.features.ts[[0, 2]], market.features.ts[:3] + np.timedelta64(1, "h")):
        with pytest.raises(
            GraphError, match="are not successive ones of the events' 190 bars; give both the same grid"
        ):
            market.events.of_bars(ts)
