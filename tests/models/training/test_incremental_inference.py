"""Forecasts from a saved state: those of the whole sequence, at one step a bar (S4-12, S4-52)."""

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

PICKS_EDGES = "ssm_gnn_attention"  # it keeps the heaviest of the edges it draws
NETWORKS = [name for name, entry in ENTRIES.items() if isinstance(entry, Network) and name != PICKS_EDGES]


@pytest.fixture(scope="session")
def market(market):
    """The market with a column that GARCH can take for the one-bar return."""
    return replace(market, features=replace(market.features, columns=("return_1", "noise", "volatility_60")))


@pytest.fixture(params=["s4d", "mamba", "ssm_gnn", "tgn_links"])
def fitted(market, tmp_path: Path, request: pytest.FixtureRequest) -> FittedFold:
    return fit_fold(**market.arguments(request.param), artifact=tmp_path / "m.safetensors")


def predict(market, fitted: FittedFold, bars: int, first: int | None = None) -> Predictions:
    """As of the panel's first ``bars`` bars."""
    features = market.features.rows(0, bars)
    return predict_fold(fitted.artifact, features, market.side_inputs, market.folds[0], first, keep_state=True)


def states(fitted: FittedFold) -> list[str]:
    return sorted(p.name for p in fitted.artifact.parent.glob("*.state"))


def assert_same(one: Predictions, other: Predictions, atol: float) -> None:
    for name in ("returns", "volatility", "probabilities"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=atol)


@pytest.mark.parametrize("fitted", NETWORKS, indirect=True)
def test_bars_stepped_from_the_saved_state_are_those_of_the_whole_sequence(
    market, fitted: FittedFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = market.folds[0].test_start
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, market.folds[0], start + 7)
    predict(market, fitted, start + 7)
    monkeypatch.setattr(fit_module, "_segment", pytest.fail)
    one = predict(market, fitted, start + 8, start + 7)
    more = predict(market, fitted, start + 11, start + 8)
    assert one.ts[0] == whole.ts[0] and len(more.ts) == 3
    assert_same(one, replace_rows(whole, slice(0, 1)), 1e-7)
    assert_same(more, replace_rows(whole, slice(1, 4)), 1e-7)


def replace_rows(made: Predictions, rows: slice) -> Predictions:
    return replace(
        made, **{k: getattr(made, k)[rows] for k in ("ts", "returns", "volatility", "probabilities", "valid")}
    )


def test_a_network_that_keeps_the_heaviest_of_its_own_edges_never_steps(market, tmp_path: Path) -> None:
    fitted = fit_fold(**market.arguments(PICKS_EDGES), artifact=tmp_path / "m.safetensors")
    start = market.folds[0].test_start
    whole = predict_fold(fitted.artifact, market.features, market.side_inputs, market.folds[0], start + 7)
    predict(market, fitted, start + 7)
    assert states(fitted) == []
    assert_same(predict(market, fitted, start + 8, start + 7), replace_rows(whole, slice(0, 1)), 1e-7)
    every = build(Spec("ssm_gnn", d_model=8, options={"graph": "attention"}), 3, 2)
    assert can_step(every) and not can_step(build(Spec(PICKS_EDGES, d_model=8), 3, 2))


def test_the_same_night_again_takes_the_same_step(market, fitted: FittedFold) -> None:
    start = market.folds[0].test_start
    predict(market, fitted, start + 7)
    first = predict(market, fitted, start + 8, start + 7)
    assert len(states(fitted)) == 2
    assert_same(predict(market, fitted, start + 8, start + 7), first, 0.0)
    predict(market, fitted, start + 9, start + 8)
    assert len(states(fitted)) == 2


def test_a_state_that_missed_an_event_is_not_used(market, tmp_path: Path) -> None:
    fitted = fit_fold(**market.arguments("tgn"), artifact=tmp_path / "m.safetensors")
    start, of = market.folds[0].test_start, market.events
    known = of.events[np.flatnonzero(of.events.t > of.closes[start + 3].astype(np.int64))[0] + 1 :]
    fewer = replace(market, events=replace(of, events=known))
    predict(fewer, fitted, start + 7)
    anew = predict_fold(fitted.artifact, market.features.rows(0, start + 8), market.side_inputs, market.folds[0])
    assert_same(predict(market, fitted, start + 8, start + 7), replace_rows(anew, slice(7, 8)), 0.0)


@pytest.mark.parametrize("harm", ["another past", "cut short", "lost"])
def test_a_state_of_another_past_is_not_used(market, fitted: FittedFold, harm: str) -> None:
    start = market.folds[0].test_start
    predict(market, fitted, start + 7)
    tonight = market
    (state,) = fitted.artifact.parent.glob("*.state")
    if harm == "another past":
        values = market.features.values.copy()
        values[start + 3, :4, 0] += 1.0
        tonight = SimpleNamespace(
            features=replace(market.features, values=values), side_inputs=market.side_inputs, folds=market.folds
        )
    elif harm == "cut short":
        state.write_bytes(state.read_bytes()[:-10])
    else:
        state.unlink()
    features = tonight.features.rows(0, start + 8)
    anew = predict_fold(fitted.artifact, features, market.side_inputs, market.folds[0], start + 7)
    assert_same(predict(tonight, fitted, start + 8, start + 7), anew, 0.0)


def test_an_irregular_network_steps_over_the_same_gaps(market, tmp_path: Path) -> None:
    """A long pause right where the context begins counts as it does for the whole segment: not at all."""
    arguments = market.arguments()
    spec = replace(arguments["spec"], options={"irregular": True})
    config, start = arguments["config"], market.folds[0].test_start
    ts = market.features.ts.copy()
    ts[start - config.context_bars :] += np.timedelta64(30, "D")
    features = replace(market.features, ts=ts)
    paused = SimpleNamespace(features=features, side_inputs=SideInputs(), folds=market.folds)
    fitted = fit_fold(**{**arguments, "spec": spec}, artifact=tmp_path / "m.safetensors")
    whole = predict_fold(fitted.artifact, features, SideInputs(), market.folds[0], start + 7)
    predict(paused, fitted, start + 7)
    assert_same(predict(paused, fitted, start + 8, start + 7), replace_rows(whole, slice(0, 1)), 1e-7)
