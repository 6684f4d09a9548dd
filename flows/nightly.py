"""The whole night: the run of all seven steps for one as-of date, universe by universe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from prefect import flow

from flows.audit import audit
from flows.backtest import backtest
from flows.graphs import graphs
from flows.ingest import ingest
from flows.parameters import NightParameters, StepParameters, latest_night, open_warehouse
from flows.publish import publish
from flows.settings import Settings, SettingsError
from flows.train import check_graphs, train
from flows.validate import validate
from models import zoo
from models.features.indicators import FeatureError
from models.graphs.snapshot import GraphError
from models.training.errors import TrainingError
from tasks.errors import LeakFoundError, NightBlockedError, TaskError
from tasks.ingest import check_market
from tasks.ledger import begin_night, night_row, step_seconds, write_night
from tasks.publish import complete_copy
from warehouse.errors import WarehouseError
from warehouse.universes import load_universe

logger = logging.getLogger(__name__)
BLOCKING_ERRORS = (NightBlockedError, LeakFoundError)
EXPECTED_ERRORS = (TaskError, WarehouseError, TrainingError, FeatureError, GraphError)


@dataclass(frozen=True)
class NightReport:
    """The result of the night of one universe.

    ``state`` is published, blocked (by a data check or the leak audit) or failed. ``champion`` is the recommended
    model, None before publication. ``seconds`` maps step names to wall seconds.
    """

    night: date
    source: str
    universe: str
    state: str
    message: str
    champion: str | None
    seconds: dict[str, float]


class NightFailedError(RuntimeError):
    """At least one universe of the night was not published; ``reports`` has one report per universe."""

    def __init__(self, message: str, reports: Sequence[NightReport] = ()) -> None:
        super().__init__(message)
        self.reports = reports


@flow
def nightly(night: NightParameters = NightParameters()) -> list[NightReport]:  # noqa: B008 (frozen; the UI's defaults)
    """Runs all steps of the night for each universe. Returns one NightReport per universe.

    The steps are ingest, validate, graphs, train, backtest, audit and publish.
    A failed universe does not stop the others. Raises NightFailedError at the end when a universe was not published;
    its previously published nights are not changed. Raises SettingsError for an unknown model, or for a model whose
    graph a profile does not build.
    """
    settings = night.settings()
    try:
        for model in settings.models:
            zoo.find_entry(model)
    except zoo.UnknownModelError as error:
        raise SettingsError(str(error)) from error
    warehouse = open_warehouse(settings)
    universes = [load_universe(warehouse, name) for name in night.universe_names()]
    for universe in universes:
        check_graphs(settings, universe.name)
    latest = settings.simulated_as_of if night.source == "simulated" else latest_night({u.calendar for u in universes})
    as_of = night.as_of or latest
    shared = night.model_dump(exclude={"as_of", "universes"})
    steps = [StepParameters(as_of=as_of, universe=universe.name, **shared) for universe in universes]
    reports = [run_universe(step, settings) for step in steps]
    if failed := [
        f"{report.universe}: {report.state}: {report.message}" for report in reports if report.state != "published"
    ]:
        raise NightFailedError("; ".join(failed), reports)
    return reports


def run_universe(step: StepParameters, settings: Settings) -> NightReport:
    """Runs the seven steps of the night for one universe. Returns its NightReport.

    A night that was published with the same settings is not run again. An error of a step is logged and written to the
    night's row and to the report; it is not raised.
    """
    night = step.open_night(settings)
    state = "published"
    message = "was published before: nothing to do"
    try:
        if night_row(night) is None:
            check_market(night)
        if begin_night(night, settings.fingerprint(step.universe)):
            for flow_of_step in (ingest, validate, graphs, train, backtest, audit, publish):
                flow_of_step(step)
            message = f"published to {night.warehouse.published}"
        else:
            complete_copy(night)
    except Exception as error:  # no error of one universe may stop the others
        state = "blocked" if isinstance(error, BLOCKING_ERRORS) else "failed"
        message = str(error)
        if not isinstance(error, EXPECTED_ERRORS):
            logger.exception("%s %s: a fault of the program", step.as_of, step.universe)
            message = f"{type(error).__name__}: {error} (a fault of the program: the log has its traceback)"
        logger.error("%s %s: %s: %s", step.as_of, step.universe, state, message)
        stored_row = night_row(night)
        if stored_row is not None and stored_row["published_at"] is None:
            write_night(night, state=state, message=message)
    row = night_row(night) or {}
    return NightReport(step.as_of, step.source, step.universe, state, message, row.get("champion"), step_seconds(night))
