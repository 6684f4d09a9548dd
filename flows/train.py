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
    """Fits what is not fitted yet and forecasts the bars that have no forecast; a cached fold costs a look."""
    night, settings = step.open(), step.settings()
    check_graphs(settings, step.universe)
    recipe = recipe_of(settings.profile(step.universe))
    with step_run(night, "train", step.fingerprint()):
        models = [c.model for c in networks(contenders(night, settings.models, settings.seeds, recipe))]
        data = load_training_data(night, recipe, models)
        return [
            train_model(night, data, model, seed, recipe, on_progress=progress())
            for model in models
            for seed in settings.seeds
        ]


def check_graphs(settings: Settings, universe: str) -> None:
    """Raises SettingsError for a model that reads a graph which the universe's profile does not build."""
    built = settings.profile(universe).graph.graphs
    for model in settings.models:
        graph = None if isinstance(zoo.entry(model), zoo.TradingRule) else zoo.graph_of(zoo.Spec(model))
        if graph is not None and graph not in built:
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


def contenders_of(night: Night, step: StepParameters) -> list[Contender]:
    """The models of a night, with the trials that forecast for them."""
    settings = step.settings()
    return contenders(night, settings.models, settings.seeds, recipe_of(settings.profile(step.universe)))


def limits_of(step: StepParameters) -> Limits:
    """The portfolio limits of a night."""
    settings = step.settings()
    staleness = settings.profile(step.universe).max_staleness_hours
    return Limits(**settings.limits.model_dump(), max_staleness_hours=staleness)
