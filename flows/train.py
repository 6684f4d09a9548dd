"""Train: every network of the night, on the folds that are due."""

from __future__ import annotations

from prefect import flow

from flows.parameters import StepParameters
from flows.progress import progress
from flows.settings import Profile, Settings, SettingsError
from models import zoo
from models.scoring.portfolio import Limits
from tasks.forecasts import Contender, networks
from tasks.ledger import step_run
from tasks.night import Night
from tasks.train import Recipe, TrialReport, contenders, load_training_data, train_model


@flow
def train(step: StepParameters) -> list[TrialReport]:
    """Fits the folds that are not in the cache, and forecasts the bars that have no forecast yet."""
    settings = step.settings()
    night = step.open_night(settings)
    check_graphs(settings, step.universe)
    recipe = recipe_of(settings.profile(step.universe))
    with step_run(night, "train", settings.fingerprint(step.universe)):
        models = [c.model for c in networks(contenders(night, settings.models, settings.seeds, recipe))]
        data = load_training_data(night, recipe, models)
        return [
            train_model(night, data, model, seed, recipe, on_progress=progress())
            for model in models
            for seed in settings.seeds
        ]


def check_graphs(settings: Settings, universe: str) -> None:
    """Raises SettingsError for a model that reads a graph which the universe's profile does not build."""
    graphs = settings.profile(universe).graph.graphs
    for model in settings.models:
        graph = None if isinstance(zoo.entry(model), zoo.TradingRule) else zoo.graph_of(zoo.Spec(model))
        if graph is not None and graph not in graphs:
            profile = settings.universes[universe]
            raise SettingsError(
                f"model {model!r} reads the graph {graph!r}, which profile {profile!r} does not build for {universe}; "
                f"add it to profiles.{profile}.graph.graphs, or leave the model out"
            )


def recipe_of(profile: Profile) -> Recipe:
    """How a profile's networks are trained."""
    return Recipe(
        profile.horizons_bars, profile.class_horizon_bars, profile.folds.model_dump(), profile.train.model_dump()
    )


def contenders_of(night: Night, settings: Settings) -> list[Contender]:
    """The models of a night, with the trials that forecast for them."""
    recipe = recipe_of(settings.profile(night.universe.name))
    return contenders(night, settings.models, settings.seeds, recipe)


def limits_of(settings: Settings, universe: str) -> Limits:
    """The portfolio limits of one universe."""
    max_staleness_hours = settings.profile(universe).max_staleness_hours
    return Limits(**settings.limits.model_dump(), max_staleness_hours=max_staleness_hours)
