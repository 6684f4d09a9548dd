"""How much each part of a hybrid network, and each way to combine the parts, contributes (HYB-31 to HYB-33).

``python -m tests.benchmarks.hybrids_table``. A hybrid has two parts: a sequence layer over time, and messages between
assets over a graph. A night, the run for one as-of date, runs on recorded stocks in this process, in a temporary
warehouse. It fits every fusion of the parts over the static (sector), the rolling (correlation) and the learned graph,
and each part alone. Every figure has a 95% interval of a block bootstrap over the test days. The information
coefficient (IC) is also given as the difference to that of the sequence layer alone, on the same bootstrap samples.
``--universe us_stocks`` uses 130 stocks instead of twelve and takes almost an hour. ``--quick`` uses the simulated
market and one epoch per fit.
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
from models.features.labels import UNKNOWN_CLASS
from models.nets.ssm_gnn import LEARNED, build_ssm_gnn
from models.scoring.bootstrap import resampled_means
from models.zoo import Network
from tests.benchmarks.markdown import interval_cell, table

# the folder of recorded market data
TAPE = Path(__file__).parents[3] / "shared" / "data" / "tape"
GRAPHS = {"static": "sector", "rolling": "correlation", "learned": LEARNED}
FUSIONS: dict[str, dict[str, str]] = {
    "sequential": {"fusion": "sequential"},
    "interleaved": {"fusion": "interleaved"},
    "interleaved_messages_first": {"fusion": "interleaved", "order": "gnn_ssm"},
    "parallel": {"fusion": "parallel"},
    "messages_alone": {"parts": "gnn"},
}
ALONE = "layer_alone"  # the sequence layer without messages
TOP_K = 8  # edges per asset of the learned graph
BLOCK_BARS = 20  # days of a block of the bootstrap
SESSIONS_A_YEAR = 252
# changes to a night's settings: with fewer and longer test windows and fewer epochs, 17 networks take minutes
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
    """The networks of the table, by name, as entries of the zoo."""
    networks = {ALONE: Network(partial(build_ssm_gnn, parts="ssm"), ALONE)}
    for kind, graph in GRAPHS.items():
        stored_graph, graph_options = (None, {"top_k": TOP_K}) if graph == LEARNED else (graph, {})
        for fusion, options in FUSIONS.items():
            name = f"{fusion}_{kind}"
            builder = partial(build_ssm_gnn, graph=graph, **graph_options, **options)
            networks[name] = Network(builder, name, stored_graph)
    frozen = partial(build_ssm_gnn, pretrained="ssm", frozen=True)
    fitted_apart = Network(frozen, "the layer first, then frozen", "correlation")
    return networks | {"sequential_rolling_fitted_apart": fitted_apart}


class Daily(NamedTuple):
    """A model's scores on each test day, (t,) each, from forecasts averaged over the seeds."""

    coefficient: np.ndarray  # information coefficient: rank correlation over the assets of forecast and return
    hit: np.ndarray  # share of the assets whose class was forecast correctly
    session_return: np.ndarray


def run_variants(universe: str, quick: bool, folder: Path, seeds: tuple[int, ...]) -> tuple[Any, Any]:
    """Runs a night with all variants. Returns its parameters and its warehouse.

    Raises RuntimeError if the night was not published.
    """
    from flows.parameters import NightParameters
    from flows.report import run_night
    from flows.terminal import make_console
    from warehouse.connect import Warehouse

    warehouse = Warehouse.from_url(folder / "warehouse.duckdb")
    source: dict[str, Any] = {} if quick else {"source": "recorded", "tape": TAPE}
    parameters = NightParameters(
        as_of=date(2024, 6, 28),
        universes=(universe,),
        models=(*variants(), "buy_and_hold"),
        seeds=seeds,
        warehouse=str(warehouse.path),
        **source,
    )
    if not run_night(parameters, warehouse, folder / "prefect", make_console(stderr=True)):
        with warehouse.read() as con:
            raise RuntimeError(str(con.execute("SELECT message FROM store.nights").fetchall()))
    return parameters, warehouse


def daily_scores(parameters: Any, warehouse: Any) -> tuple[dict[str, Daily], pd.DataFrame]:
    """The daily scores of every model by name, and the rows of TRIALS with the model as the index."""
    from flows.parameters import StepParameters
    from flows.train import recipe_of
    from tasks.forecasts import Contender, load_forecasts
    from tasks.train import load_training_data

    step = StepParameters(universe=parameters.universes[0], **parameters.model_dump(exclude={"universes"}))
    settings = step.settings()
    opened_night = step.open_night(settings)
    recipe = recipe_of(settings.profile(parameters.universes[0]))
    data = load_training_data.fn(opened_night, recipe, ())
    labels = data.labels
    horizon = recipe.horizons.index(recipe.class_horizon)
    with warehouse.read() as con:
        trials = con.execute(TRIALS).df().set_index("model")
        sessions = con.execute(SESSIONS).df()
    daily = {}
    for model, row in trials.iterrows():
        forecasts = load_forecasts(
            opened_night, Contender(model, "network", tuple(row["trials"])), recipe.class_horizon, data.features.ts
        )
        is_known = forecasts.mask & (labels.class_5 != UNKNOWN_CLASS)
        has_pairs = is_known.sum(axis=1) > 1  # a day needs two assets
        expected = pd.DataFrame(np.where(is_known, forecasts.column("expected_return"), np.nan))[has_pairs]
        realised = pd.DataFrame(np.where(is_known, labels.returns[:, :, horizon], np.nan))[has_pairs]
        # Spearman's correlation over the assets of a day; 0 where a network forecasts the same for all assets
        coefficient = expected.rank(axis=1).corrwith(realised.rank(axis=1), axis=1).fillna(0.0)
        is_hit = is_known & (forecasts.values[:, :, :5].argmax(axis=2) == labels.class_5)
        hit = is_hit.sum(axis=1) / is_known.sum(axis=1).clip(1)
        session_returns = sessions.loc[sessions["model"] == model, "session_return"].to_numpy()
        daily[str(model)] = Daily(coefficient.to_numpy(), hit[has_pairs], session_returns)
    return daily, trials


def page(daily: dict[str, Daily], trials: pd.DataFrame) -> str:
    """The Markdown table: one row per network, in the order of ``variants``."""
    names = [name for name in variants() if name in daily]
    draws = {
        field: dict(
            zip(names, resampled_means([getattr(daily[n], field)[None] for n in names], BLOCK_BARS), strict=True)
        )
        for field in Daily._fields
    }
    rows = []
    for name in names:
        scores = daily[name]
        trial = trials.loc[name]
        annualised = SESSIONS_A_YEAR**0.5 / scores.session_return.std(ddof=1)
        coefficient_draws = draws["coefficient"][name]
        difference = scores.coefficient.mean() - daily[ALONE].coefficient.mean()
        difference_draws = coefficient_draws - draws["coefficient"][ALONE]
        rows.append(
            [
                f"{name} ({trial['parameters']:,})",
                interval_cell(
                    scores.session_return.mean() * annualised, draws["session_return"][name] * annualised, ".2f"
                ),
                interval_cell(scores.coefficient.mean(), coefficient_draws, ".3f"),
                "-" if name == ALONE else interval_cell(difference, difference_draws, "+.3f"),
                interval_cell(scores.hit.mean(), draws["hit"][name], ".3f"),
                f"{trial['loss']:.4f} ({trial['least']:.4f} … {trial['most']:.4f})",
            ]
        )
    head = ["network (parameters)", "Sharpe", "rank IC", f"IC over {ALONE}", "accuracy, 5 classes", "validation loss"]
    return table(head, rows)


def main() -> None:
    """Runs the night and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the simulated market and one epoch per fit")
    parser.add_argument("--universe", choices=("us_stocks", "demo_stocks"), default="demo_stocks")
    parser.add_argument("--seeds", type=int, default=1, help="number of fits of every network and fold")
    arguments = parser.parse_args()
    if not arguments.quick and not TAPE.is_dir():
        sys.exit(f"no recorded market data at {TAPE}; try --quick")
    os.environ |= QUICK if arguments.quick else SHORTER
    zoo.ENTRIES |= variants()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        universe = "demo_stocks" if arguments.quick else arguments.universe
        daily, trials = daily_scores(
            *run_variants(universe, arguments.quick, Path(folder), tuple(range(arguments.seeds)))
        )
    days = len(daily[ALONE].hit)
    minutes = (time.perf_counter() - started) / 60
    print(page(daily, trials))
    market = f"{universe}, {'simulated' if arguments.quick else 'recorded'}"
    print(
        f"{market}, {days} test days in blocks of {BLOCK_BARS}, {arguments.seeds} seeds; intervals contain "
        f"95% of the draws, for the validation loss its range over all folds; {minutes:.1f} minutes"
    )


if __name__ == "__main__":
    main()
