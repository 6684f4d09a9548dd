"""The model table and the ablation of the source articles (S4-44, S4-47), measured in a night.

``python -m tests.benchmarks.market_table --out FILE.json``. A night is the run for one as-of date. It runs in this
process, in a temporary warehouse, with models of the zoo and with the ablation's variants, which are added to the zoo
for this run. As in every night, fits run in parallel with one thread each. Without recorded market data the file
contains only the reason. ``--quick`` uses the simulated market and one epoch per fit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import torch

from models import zoo
from models.nets.estimators import Estimator
from models.nets.forecast import Batch
from models.nets.sequence_layers import build_sequence_network
from models.training.artifact import read_header
from models.training.errors import FitError
from models.zoo import Network, Spec
from tests.benchmarks.contest import short_error

# the folder of recorded market data
TAPE = Path(__file__).parents[3] / "shared" / "data" / "tape"
MODELS = (
    *("lstm", "gru", "transformer", "s4d", "s4", "mamba"),
    *("mamba2", "s5", "dss", "tcn", "ridge", "gradient_boosting", "garch"),
)
RULES = ("buy_and_hold", "momentum")
# the full S4 of the source articles has 64 states; the zoo's default is 16
# the ablation's variants by name: layer, states of a channel, and options of the layer
VARIANTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "s4_full": ("s4", 64, {}),
    "s4_no_hippo": ("s4", 64, {"spectrum": "random"}),
    "s4_fixed_step": ("s4", 64, {"learn_dt": False}),
    "s4_32_states": ("s4", 32, {}),
    "s4_128_states": ("s4", 128, {}),
    "s4d_64_states": ("s4d", 64, {}),
}
# changes to a night's settings: with fewer and longer test windows and fewer epochs, 19 models finish in time
SHORTER = {"NIGHTLY_PROFILES__STOCKS__FOLDS__TEST_BARS": "252", "NIGHTLY_PROFILES__STOCKS__TRAIN__EPOCHS": "4"}
QUICK = {"NIGHTLY_PROFILES__DEMO_STOCKS__TRAIN__EPOCHS": "1"}
LEADERBOARD = """
SELECT l.model, l.sharpe, l.sortino, l.max_drawdown, l.annual_return, l.win_rate, l.sessions,
    l.first_session::VARCHAR AS first_session, l.last_session::VARCHAR AS last_session,
    t.parameters, t.trial_id, f.folds, f.validation_loss
FROM store.leaderboard AS l
LEFT JOIN store.trials AS t ON t.model = l.model
LEFT JOIN (
    SELECT trial_id, count(*) AS folds, avg(validation_loss) AS validation_loss FROM store.folds GROUP BY trial_id
) AS f USING (trial_id)
ORDER BY l.rank
"""
ARTIFACT = "SELECT artifact FROM store.folds WHERE trial_id = ? AND fold = ?"


def build_variant(layer: str, d_state: int, options: dict[str, Any], spec: Spec, *sizes: int, **more: Any) -> Any:
    """The network of a variant; a builder of the zoo once the first three arguments are bound."""
    return build_sequence_network(replace(spec, model=layer, d_state=d_state), *sizes, **options, **more)


def usable_models(models: list[str]) -> tuple[list[str], dict[str, str]]:
    """The models that can be built and run, and the errors of the others by name.

    A model that fails would end the night.
    """
    bars, assets = 40, 2
    features, horizons = 4, 2
    mask = torch.ones(1, bars, assets, dtype=torch.bool)
    batch = Batch(torch.randn(1, bars, assets, features), mask, torch.ones(1, bars))
    usable = []
    failed = {}
    for name in models:
        try:
            network = zoo.build(Spec(name), features, horizons)
            if not isinstance(network, Estimator):  # an estimator cannot forecast before it is fitted
                network(batch)
        except Exception as error:
            failed[name] = short_error(error)
        else:
            usable.append(name)
    return usable, failed


def night_table(quick: bool, folder: Path, without: dict[str, str]) -> dict[str, Any]:
    """Runs the night. Returns its figures by model in ``rows``, the errors in ``failed``, and a description.

    If there are no figures, it returns the reason in ``skipped`` instead. ``without`` maps the models to leave out to
    the reasons. If models ended the night, ``blamed`` contains their errors, so that the night can be run again without
    them.
    """
    if not quick and not TAPE.is_dir():
        return {"skipped": f"no recorded market data at {TAPE}"}
    os.environ |= QUICK if quick else SHORTER
    zoo.ENTRIES |= {name: Network(partial(build_variant, *arguments), name) for name, arguments in VARIANTS.items()}
    models, failed = usable_models([name for name in (*MODELS, *VARIANTS) if name not in without])
    failed |= without
    import tasks.train
    from flows.parameters import NightParameters
    from flows.report import run_night
    from flows.terminal import make_console
    from warehouse.connect import Warehouse

    warehouse = Warehouse.from_url(folder / "warehouse.duckdb")
    market: dict[str, Any] = {"source": "recorded", "tape": TAPE, "universes": ("us_stocks",)}
    if quick:
        market = {"universes": ("demo_stocks",)}
    night = NightParameters(
        as_of=date(2024, 6, 28), models=(*models, *RULES), seeds=(0,), warehouse=str(warehouse.path), **market
    )
    seconds: dict[str, list[float]] = defaultdict(list)
    blamed: dict[str, str] = {}
    fit = tasks.train.fit_fold
    predict = tasks.train.predict_fold
    with (
        mock.patch.object(tasks.train, "fit_fold", record_times(fit, lambda spec: spec.model, seconds, blamed)),
        mock.patch.object(tasks.train, "predict_fold", record_times(predict, model_of, defaultdict(list), blamed)),
    ):
        is_published = run_night(night, warehouse, folder / "prefect", make_console())
    if not is_published:
        with warehouse.read() as con:
            messages = con.execute("SELECT message FROM store.nights").fetchall()
        return {"skipped": f"the night was not published: {messages}", "failed": failed, "blamed": blamed}
    rows = collect_figures(night, warehouse, seconds, failed)
    description = f"{market.get('source', 'simulated')} {market['universes'][0]}"
    return {"market": description, "settings": QUICK if quick else SHORTER, "rows": rows, "failed": failed}


def model_of(artifact: Path) -> str:
    """The name of the model that is saved in a model file."""
    return read_header(artifact).spec.model


def record_times(
    work: Callable[..., Any], name: Callable[[Any], str], seconds: dict[str, list[float]], blamed: dict[str, str]
) -> Callable[..., Any]:
    """A function that calls ``work`` and records its seconds in ``seconds``, or its error in ``blamed``.

    ``name`` gives the name of the model from the first argument of ``work``.
    """

    def run(first: Any, *arguments: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            result = work(first, *arguments, **more)
        except FitError:  # the night leaves this fold out and continues
            raise
        except Exception as error:
            if type(error).__name__ != "StoppedError":  # this work was stopped because another model failed
                blamed[name(first)] = short_error(error)
            raise
        seconds[name(first)].append(time.perf_counter() - start)
        return result

    return run


def collect_figures(
    night: Any, warehouse: Any, seconds: dict[str, list[float]], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The figures of each model, by name: its row of LEADERBOARD, ``train_s`` (mean seconds of a fit), and the times of
    ``time_inference``. Errors of the latter are added to ``failed``."""
    from flows.parameters import StepParameters
    from flows.train import recipe_of
    from tasks.train import load_training_data

    universe = night.universes[0]
    step = StepParameters(universe=universe, **night.model_dump(exclude={"universes"}))
    settings = step.settings()
    opened_night = step.open_night(settings)
    data = load_training_data.fn(opened_night, recipe_of(settings.profile(universe)))
    last_whole_fold = [fold for fold in data.folds if fold.test_stop <= len(data.features)][-1]
    with warehouse.read() as con:
        rows = con.execute(LEADERBOARD).to_arrow_table().to_pylist()
        trial_ids = [row["trial_id"] for row in rows if row["trial_id"]]
        artifacts = {id_: con.execute(ARTIFACT, [id_, last_whole_fold.index]).fetchone() for id_ in trial_ids}
    by_model = {}
    for row in rows:
        model = row["model"]
        by_model[model] = {**row, "train_s": mean(seconds[model]) if seconds[model] else None}
        artifact_row = artifacts.get(row["trial_id"])
        if artifact_row is not None:
            (file_name,) = artifact_row
            try:
                by_model[model] |= time_inference(warehouse.artifacts / file_name, data, last_whole_fold)
            except Exception as error:
                failed[f"{model}, inference"] = short_error(error)
    return by_model


def time_inference(artifact: Path, data: Any, fold: Any) -> dict[str, Any]:
    """The times of inference with a model file.

    ``fold_ms``: milliseconds of all forecasts of the fold's test window, which has ``fold_bars`` bars of ``assets``
    assets. ``bar_ms``: milliseconds of one step with a bar of all assets; absent for a network without ``step``.
    """
    from models.graphs.context import SideInputs
    from models.training.artifact import load_artifact
    from models.training.data import Inputs
    from models.training.fit import predict_fold

    def predict() -> None:
        predict_fold(artifact, data.features, data.side_inputs_of(read_header(artifact).spec), fold)

    loaded = load_artifact(artifact)
    assets = len(data.features.symbols)
    header = loaded.header
    network = loaded.network
    times = {"assets": assets, "fold_bars": fold.test_stop - fold.test_start}
    times["fold_ms"] = median_ms(predict, 3)
    if hasattr(network, "step"):
        panel = data.features.slice_bars(fold.test_start - 1, fold.test_start + 1)
        bar = Inputs.from_panel(panel, header.scaler, header.bar_us, SideInputs()).batch(torch.tensor([[1]]))
        state = network.initial_state(1, assets)
        with torch.no_grad():
            _, state = network.step(bar, state)
            times["bar_ms"] = median_ms(lambda: network.step(bar, state), 15)
    return times


def median_ms(work: Callable[[], object], runs: int) -> float:
    """The median milliseconds of ``runs`` runs of ``work``."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * median(seconds)


def main() -> None:
    """Writes the figures to a JSON file. If models ended the night, runs it again without them, in a new process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, help="folder of the warehouse [default: a temporary folder]")
    parser.add_argument("--without", type=json.loads, default={}, help="models to leave out and why, as JSON")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            table = night_table(arguments.quick, folder, arguments.without)
        except Exception as error:
            table = {"skipped": short_error(error)}
        arguments.out.write_text(json.dumps(table, indent=1, default=str))
        if table.get("blamed"):
            print(f"runs the night again, without {', '.join(table['blamed'])}", file=sys.stderr, flush=True)
            without = json.dumps(arguments.without | table["blamed"])
            command = [sys.executable, "-m", "tests.benchmarks.market_table"]
            options = ["--out", arguments.out, "--folder", folder, "--without", without]
            options += ["--quick"] if arguments.quick else []
            subprocess.run([*command, *options], check=False)


if __name__ == "__main__":
    main()
