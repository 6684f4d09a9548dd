"""What each half of a hybrid and each way to join them is worth (inventory HYB-31 to HYB-33): ``python -m
tests.benchmarks.hybrids_table``.

One night on recorded stocks runs in this process, in a warehouse that is thrown away, with every fusion over the static
(sector), the rolling (correlation) and the learned graph, and each half alone. Every figure stands with a 95% interval
over test days drawn in blocks, and the information coefficient also as its difference to the layer over time alone, on
the same draws. ``--universe us_stocks`` takes 130 stocks instead of twelve and the better part of an hour, ``--quick``
the simulated market and an epoch a fit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from models import zoo
from models.features.labels import UNKNOWN
from models.nets.ssm_gnn import LEARNED, ssm_gnn
from models.scoring.bootstrap import interval, resampled_means
from models.zoo import Network
from tests.benchmarks.markdown import table

TAPE = Path(__file__).parents[3] / "shared" / "data" / "tape"
GRAPHS = {"static": "sector", "rolling": "correlation", "learned": LEARNED}
FUSIONS: dict[str, dict[str, str]] = {
    "sequential": {"fusion": "sequential"},
    "interleaved": {"fusion": "interleaved"},
    "interleaved_messages_first": {"fusion": "interleaved", "order": "gnn_ssm"},
    "parallel": {"fusion": "parallel"},
    "messages_alone": {"parts": "gnn"},
}
ALONE = "layer_alone"
TOP_K = 8
BLOCK_BARS, SESSIONS_A_YEAR = 20, 252
# fewer, longer test windows and shorter fits than a night's, so that seventeen networks end in minutes
SHORTER = {"NIGHTLY_PROFILES__STOCKS__FOLDS__TEST_BARS": "405", "NIGHTLY_PROFILES__STOCKS__TRAIN__EPOCHS": "4"}
QUICK = {"NIGHTLY_PROFILES__DEMO_STOCKS__TRAIN__EPOCHS": "1"}
TRIALS = """
SELECT t.model, list(DISTINCT t.trial_id ORDER BY t.trial_id) AS trials, any_value(t.parameters) AS parameters,
    avg(f.validation_loss) AS loss, min(f.validation_loss) AS least, max(f.validation_loss) AS most
FROM store.trials AS t JOIN store.folds AS f USING (trial_id) GROUP BY t.model
"""
SESSIONS = """
SELECT b.model, e.session_return FROM store.equity_curves AS e JOIN store.backtests AS b USING (backtest_id)
WHERE b.fill = 'next_open' ORDER BY e.ts
"""


def variants() -> dict[str, Network]:
    """The networks of the table by name."""
    found = {ALONE: Network(partial(ssm_gnn, parts="ssm"), ALONE)}
    for kind, graph in GRAPHS.items():
        stored, kept = (None, {"top_k": TOP_K}) if graph == LEARNED else (graph, {})
        for fusion, options in FUSIONS.items():
            name = f"{fusion}_{kind}"
            found[name] = Network(partial(ssm_gnn, graph=graph, **kept, **options), name, stored)
    apart = partial(ssm_gnn, pretrained="ssm", frozen=True)
    return found | {"sequential_rolling_fitted_apart": Network(apart, "the layer first, then frozen", "correlation")}


class Daily(NamedTuple):
    """What a model scored on each test day, (t,) each; seeds are averaged before."""

    coefficient: np.ndarray
    hit: np.ndarray
    session_return: np.ndarray


def night(universe: str, quick: bool, folder: Path, seeds: tuple[int, ...]) -> tuple[Any, Any]:
    """The night run, and its parameters. Raises RuntimeError for one that was not published."""
    from flows.parameters import NightParameters
    from flows.report import run_night
    from flows.terminal import console
    from warehouse.connect import Warehouse

    warehouse = Warehouse.from_url(folder / "warehouse.duckdb")
    where: dict[str, Any] = {} if quick else {"source": "recorded", "tape": TAPE}
    asked = NightParameters(
        as_of=date(2024, 6, 28),
        universes=(universe,),
        models=(*variants(), "buy_and_hold"),
        seeds=seeds,
        warehouse=str(warehouse.path),
        **where,
    )
    if not run_night(asked, warehouse, folder / "prefect", console(stderr=True)):
        with warehouse.read() as con:
            raise RuntimeError(str(con.execute("SELECT message FROM store.nights").fetchall()))
    return asked, warehouse


def scores(asked: Any, warehouse: Any) -> tuple[dict[str, Daily], pd.DataFrame]:
    """Every model's daily scores, and what is known of its trials by model."""
    from flows.parameters import StepParameters
    from flows.train import recipe_of
    from tasks.forecasts import Contender, load_forecasts
    from tasks.train import load_training_data

    step = StepParameters(universe=asked.universes[0], **asked.model_dump(exclude={"universes"}))
    settings = step.settings()
    opened = step.open_night(settings)
    recipe = recipe_of(settings.profile(asked.universes[0]))
    labels = (data := load_training_data.fn(opened, recipe, ())).labels
    horizon = recipe.horizons.index(recipe.class_horizon)
    with warehouse.read() as con:
        trials, sessions = con.execute(TRIALS).df().set_index("model"), con.execute(SESSIONS).df()
    found = {}
    for model, row in trials.iterrows():
        made = load_forecasts(
            opened, Contender(model, "network", tuple(row["trials"])), recipe.class_horizon, data.features.ts
        )
        known = made.mask & (labels.class_5 != UNKNOWN)
        days = known.sum(axis=1) > 1
        expected, realised = (
            pd.DataFrame(np.where(known, values, np.nan))[days]
            for values in (made.column("expected_return"), labels.returns[:, :, horizon])
        )
        # Spearman: the correlation of the ranks among the assets of a day; 0 where a network says the same of all
        coefficient = expected.rank(axis=1).corrwith(realised.rank(axis=1), axis=1).fillna(0.0)
        hit = np.where(known, made.values[:, :, :5].argmax(axis=2) == labels.class_5, 0.0).sum(axis=1) / known.sum(
            axis=1
        ).clip(1)
        returned = sessions.loc[sessions["model"] == model, "session_return"].to_numpy()
        found[str(model)] = Daily(coefficient.to_numpy(), hit[days], returned)
    return found, trials


def told(value: float, draws: np.ndarray, form: str) -> str:
    low, high = interval(draws)
    return f"{value:{form}} ({low:{form}} … {high:{form}})"


def page(found: dict[str, Daily], trials: pd.DataFrame) -> str:
    """The table, a row for each network in the order of ``variants``."""
    names = [name for name in variants() if name in found]
    draws = {
        field: dict(
            zip(names, resampled_means([getattr(found[n], field)[None] for n in names], BLOCK_BARS), strict=True)
        )
        for field in Daily._fields
    }
    rows = []
    for name in names:
        daily, trial, of = found[name], trials.loc[name], {field: draws[field][name] for field in Daily._fields}
        year = SESSIONS_A_YEAR**0.5 / daily.session_return.std(ddof=1)
        apart = of["coefficient"] - draws["coefficient"][ALONE]
        gained = daily.coefficient.mean() - found[ALONE].coefficient.mean()
        rows.append(
            [
                f"{name} ({trial['parameters']:,})",
                told(daily.session_return.mean() * year, of["session_return"] * year, ".2f"),
                told(daily.coefficient.mean(), of["coefficient"], ".3f"),
                "-" if name == ALONE else told(gained, apart, "+.3f"),
                told(daily.hit.mean(), of["hit"], ".3f"),
                f"{trial['loss']:.4f} ({trial['least']:.4f} … {trial['most']:.4f})",
            ]
        )
    head = ["network (parameters)", "Sharpe", "rank IC", f"IC over {ALONE}", "accuracy, 5 classes", "validation loss"]
    return table(head, rows)


def main() -> None:
    """Runs the night and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the simulated market, an epoch a fit")
    parser.add_argument("--universe", choices=("us_stocks", "demo_stocks"), default="demo_stocks")
    parser.add_argument("--seeds", type=int, default=1, help="fits of every network and fold")
    asked = parser.parse_args()
    if not asked.quick and not TAPE.is_dir():
        sys.exit(f"no recorded market data at {TAPE}; try --quick")
    os.environ |= QUICK if asked.quick else SHORTER
    zoo.ENTRIES |= variants()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        universe = "demo_stocks" if asked.quick else asked.universe
        found, trials = scores(*night(universe, asked.quick, Path(folder), tuple(range(asked.seeds))))
    days, minutes = len(found[ALONE].hit), (time.perf_counter() - started) / 60
    print(page(found, trials))
    market = f"{universe}, {'simulated' if asked.quick else 'recorded'}"
    print(
        f"{market}, {days} test days in blocks of {BLOCK_BARS}, {asked.seeds} seeds; intervals hold 95% of the draws, "
        f"those of the validation loss its least and most of all folds; {minutes:.1f} minutes"
    )


if __name__ == "__main__":
    main()
