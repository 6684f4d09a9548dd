"""Train, a step of the night (the run for one as-of date): fits the networks and forecasts with them."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.progress import start_progress
from flows.settings import Profile, Settings, SettingsError
from models import zoo
from models.scoring.portfolio import Limits
from tasks.forecasts import Contender, networks
from tasks.ledger import step_run
from tasks.night import Night
from tasks.train import Recipe, TrialReport, contenders, load_training_data, train_model


@flow
def train(step: StepParameters) -> list[TrialReport]:
    """One report per model and seed. Fits the folds that are not stored yet, and forecasts the bars without a forecast.

    Raises SettingsError for a model whose graph the profile does not build.
    """
    settings = step.settings()
    night = step.open_night(settings)
    check_graphs(settings, step.universe)
    recipe = recipe_of(settings.profile(step.universe))
    with step_run(night, "train", settings.fingerprint(step.universe)):
        models = [network.model for network in networks(contenders(night, settings.models, settings.seeds, recipe))]
        data = load_training_data(night, recipe, models)
        return [
            train_model(night, data, model, seed, recipe, on_progress=start_progress())
            for model in models
            for seed in settings.seeds
        ]


def check_graphs(settings: Settings, universe: str) -> None:
    """Raises SettingsError when a model of ``settings`` reads a graph that the universe's profile does not build."""
    graphs = settings.profile(universe).graph.graphs
    for model in settings.models:
        is_rule = isinstance(zoo.find_entry(model), zoo.TradingRule)
        graph = None if is_rule else zoo.graph_of(zoo.Spec(model))
        if graph is not None and graph not in graphs:
            profile = settings.universes[universe]
            raise SettingsError(
                f"model {model!r} reads the graph {graph!r}, which profile {profile!r} does not build for {universe}; "
                f"add it to profiles.{profile}.graph.graphs, or leave the model out"
            )


def recipe_of(profile: Profile) -> Recipe:
    """The training recipe of a profile: horizons, folds and training options."""
    return Recipe(
        profile.horizons_bars,
        profile.class_horizon_bars,
        folds=profile.folds.model_dump(),
        train=profile.train.model_dump(),
    )


def contenders_of(night: Night, settings: Settings) -> list[Contender]:
    """The networks and trading rules of a night, each network with its trials (one per seed)."""
    recipe = recipe_of(settings.profile(night.universe.name))
    return contenders(night, settings.models, settings.seeds, recipe)


def limits_of(settings: Settings, universe: str) -> Limits:
    """The portfolio limits of one universe."""
    max_staleness_hours = settings.profile(universe).max_staleness_hours
    return Limits(**settings.limits.model_dump(), max_staleness_hours=max_staleness_hours)
