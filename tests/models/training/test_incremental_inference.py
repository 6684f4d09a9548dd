"""Forecasts from a saved state: equal to those of the whole sequence, at one step per bar (S4-12, S4-52)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.graphs.context import SideInputs
from models.training import fit as fit_module
from models.training.fit import FittedFold, Predictions, fit_fold, predict_fold
from models.training.incremental_inference import can_step
from models.zoo import ENTRIES, Network, Spec, build

HEAVIEST_EDGES_NETWORK = "ssm_gnn_attention"  # a network that learns edges and keeps only the heaviest ones
STEP_TOLERANCE = 1e-7  # a step and a segment differ by float32 rounding
NETWORKS = [name for name, entry in ENTRIES.items() if isinstance(entry, Network) and name != HEAVIEST_EDGES_NETWORK]


@pytest.fixture(scope="session")
def market(market):
    """The market with a column that GARCH can use as the one-bar return."""
    return replace(market, features=replace(market.features, columns=("return_1", "noise", "volatility_60")))


@pytest.fixture(params=["s4d", "mamba", "ssm_gnn", "tgn_links"])
def fitted(market, tmp_path: Path, request: pytest.FixtureRequest) -> FittedFold:
    """A fit of the network ``request.param`` to the first fold."""
    return fit_fold(**market.arguments(request.param), artifact=tmp_path / "m.safetensors")


def predict_and_save_state(market, fitted: FittedFold, n_bars: int, first: int | None = None) -> Predictions:
    """Forecasts from bar ``first`` on with a panel of ``n_bars`` bars; saves the state after the last bar."""
    features = market.features.slice_bars(0, n_bars)
    return predict_fold(fitted.artifact, features, market.side_inputs, market.folds[0], first, keep_state=True)


def state_file_names(fitted: FittedFold) -> list[str]:
    """The names of the saved states of the fold."""
    return sorted(p.name for p in fitted.artifact.parent.glob("*.state"))


def assert_forecasts_close(actual: Predictions, expected: Predictions, atol: float) -> None:
    """The forecasts differ by at most ``atol``."""
    for name in ("returns", "volatility", "probabilities"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=0, atol=atol)


@pytest.mark.parametrize("fitted", NETWORKS, indirect=True)
def test_forecasts_from_the_saved_state_equal_those_of_the_whole_sequence(
    market, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4-04: a network needs its saved state and the new bars alone."""
    start = market.folds[0].test_start
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, market.folds[0], start + 7)
    predict_and_save_state(market, fitted, start + 7)
    # without the saved state the bars would be computed as a segment
    monkeypatch.setattr(fit_module, "_forecast_segment", pytest.fail)
    one_bar = predict_and_save_state(market, fitted, start + 8, start + 7)
    three_bars = predict_and_save_state(market, fitted, start + 11, start + 8)
    assert one_bar.ts[0] == whole.ts[0]
    assert len(three_bars.ts) == 3
    assert_forecasts_close(one_bar, select_bars(whole, slice(0, 1)), STEP_TOLERANCE)
    assert_forecasts_close(three_bars, select_bars(whole, slice(1, 4)), STEP_TOLERANCE)


def select_bars(predictions: Predictions, bars: slice) -> Predictions:
    """The predictions of the bars at the positions ``bars``."""
    names = ("ts", "returns", "volatility", "probabilities", "valid")
    return replace(predictions, **{name: getattr(predictions, name)[bars] for name in names})


def test_a_network_that_keeps_only_its_heaviest_learned_edges_never_steps(market, tmp_path: Path) -> None:
    fitted = fit_fold(**market.arguments(HEAVIEST_EDGES_NETWORK), artifact=tmp_path / "m.safetensors")
    start = market.folds[0].test_start
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, market.folds[0], start + 7)
    predict_and_save_state(market, fitted, start + 7)
    assert state_file_names(fitted) == []
    assert_forecasts_close(
        predict_and_save_state(market, fitted, start + 8, start + 7), select_bars(whole, slice(0, 1)), STEP_TOLERANCE
    )
    keeps_all_edges = build(Spec("ssm_gnn", d_model=8, options={"graph": "attention"}), 3, 2)
    keeps_heaviest_edges = build(Spec(HEAVIEST_EDGES_NETWORK, d_model=8), 3, 2)
    assert can_step(keeps_all_edges)
    assert not can_step(keeps_heaviest_edges)


def test_a_repeated_night_starts_from_the_older_of_two_states_and_gives_identical_forecasts(
    market, fitted: FittedFold
) -> None:
    start = market.folds[0].test_start
    predict_and_save_state(market, fitted, start + 7)
    first = predict_and_save_state(market, fitted, start + 8, start + 7)
    assert len(state_file_names(fitted)) == 2
    assert_forecasts_close(predict_and_save_state(market, fitted, start + 8, start + 7), first, 0.0)
    predict_and_save_state(market, fitted, start + 9, start + 8)
    assert len(state_file_names(fitted)) == 2


def test_a_state_computed_without_an_event_is_not_used(market, tmp_path: Path) -> None:
    fitted = fit_fold(**market.arguments("tgn"), artifact=tmp_path / "m.safetensors")
    start = market.folds[0].test_start
    by_bar = market.events
    is_later = by_bar.events.t > by_bar.close_times[start + 3].astype(np.int64)
    first_later = int(np.flatnonzero(is_later)[0])
    incomplete = replace(market, events=replace(by_bar, events=by_bar.events[first_later + 1 :]))
    predict_and_save_state(incomplete, fitted, start + 7)
    features = market.features.slice_bars(0, start + 8)
    expected = predict_fold(fitted.artifact, features, market.side_inputs, market.folds[0])
    assert_forecasts_close(
        predict_and_save_state(market, fitted, start + 8, start + 7), select_bars(expected, slice(7, 8)), 0.0
    )


@pytest.mark.parametrize("damage", ["other inputs", "truncated", "deleted"])
def test_a_state_of_other_inputs_or_a_damaged_state_is_not_used(market, fitted: FittedFold, damage: str) -> None:
    start = market.folds[0].test_start
    predict_and_save_state(market, fitted, start + 7)
    changed_market = market
    (state,) = fitted.artifact.parent.glob("*.state")
    if damage == "other inputs":
        values = market.features.values.copy()
        values[start + 3, :4, 0] += 1.0
        changed_market = SimpleNamespace(
            features=replace(market.features, values=values), side_inputs=market.side_inputs, folds=market.folds
        )
    elif damage == "truncated":
        state.write_bytes(state.read_bytes()[:-10])
    else:
        state.unlink()
    features = changed_market.features.slice_bars(0, start + 8)
    expected = predict_fold(fitted.artifact, features, market.side_inputs, market.folds[0], start + 7)
    assert_forecasts_close(predict_and_save_state(changed_market, fitted, start + 8, start + 7), expected, 0.0)


def test_an_irregular_network_ignores_the_gap_before_the_context_in_steps_too(market, tmp_path: Path) -> None:
    """A long pause just before the first bar of the context has no effect, as for the whole segment."""
    arguments = market.arguments()
    spec = replace(arguments["spec"], options={"irregular": True})
    config = arguments["config"]
    start = market.folds[0].test_start
    ts = market.features.ts.copy()
    ts[start - config.context_bars :] += np.timedelta64(30, "D")
    features = replace(market.features, ts=ts)
    with_pause = SimpleNamespace(features=features, side_inputs=SideInputs(), folds=market.folds)
    fitted = fit_fold(**{**arguments, "spec": spec}, artifact=tmp_path / "m.safetensors")
    whole = predict_fold(fitted.artifact, features, SideInputs(), market.folds[0], start + 7)
    predict_and_save_state(with_pause, fitted, start + 7)
    assert_forecasts_close(
        predict_and_save_state(with_pause, fitted, start + 8, start + 7),
        select_bars(whole, slice(0, 1)),
        STEP_TOLERANCE,
    )
