"""The settings in one frozen object, read from arguments, environment (``NIGHTLY_…``) and settings.toml."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

DEFAULTS = Path(__file__).with_name("settings.toml")
Bars = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class SettingsError(ValueError):
    """A setting is missing, misspelt or out of bounds, or a universe has no profile."""


class Frozen(BaseModel):
    """A group of settings: unknown names are refused, values cannot change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestSettings(Frozen):
    """How the market's data is fetched."""

    overlap_bars: Annotated[int, Field(ge=0, description="bars re-pulled before the watermark, to see restated rows")]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1, description="share of failing symbols that stops the night")]
    threads: Annotated[int, Field(ge=1, le=64)]


class LimitSettings(Frozen):
    """Portfolio limits (TGN-38)."""

    max_position: Share
    max_correlated_exposure: Share
    correlation_threshold: Share
    min_confidence: Share
    drawdown_trigger: Share
    cooldown_sessions: Bars
    max_leverage: Annotated[float, Field(gt=0)]


class FoldSettings(Frozen):
    """Walk-forward windows, in bars."""

    warmup_bars: Bars
    train_bars: Bars
    test_bars: Bars
    embargo_bars: Annotated[int, Field(ge=0)]


class GraphSettings(Frozen):
    """The graphs of models/graphs/catalogue.py to build, and their windows; ``Settings.profile`` checks the names."""

    graphs: Annotated[tuple[str, ...], Field(min_length=1)]
    window_bars: Annotated[int, Field(ge=5, description="fewer leave the directed graphs nothing to test")]
    min_correlation: Share
    top_k: Bars
    every_bars: Bars


class TrainSettings(Frozen):
    """Options of one fit. All others keep the default of ``models.training.fit.TrainConfig``."""

    epochs: Annotated[int, Field(ge=1, le=1000)]
    chunk_bars: Annotated[int, Field(ge=8)]
    burn_in_bars: Annotated[int, Field(ge=0)]
    context_bars: Bars

    @model_validator(mode="after")
    def _chunks_outlast_their_burn_in(self) -> TrainSettings:
        if self.burn_in_bars >= self.chunk_bars:
            raise ValueError(f"burn_in_bars {self.burn_in_bars} must be below chunk_bars {self.chunk_bars}")
        return self


class Profile(Frozen):
    """The settings that depend on the length of a market's bars."""

    horizons_bars: Annotated[tuple[Bars, ...], Field(min_length=1)]
    class_horizon_bars: Bars
    max_staleness_hours: Annotated[float, Field(gt=0)]
    folds: FoldSettings
    graph: GraphSettings
    train: TrainSettings

    @model_validator(mode="after")
    def _class_horizon_is_a_horizon(self) -> Profile:
        if self.class_horizon_bars not in self.horizons_bars:
            raise ValueError(f"class_horizon_bars {self.class_horizon_bars} is not among {self.horizons_bars}")
        return self


class Settings(BaseSettings):
    """The settings of one flow run, built once by the flow and passed on as plain values."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="NIGHTLY_", env_nested_delimiter="__", toml_file=DEFAULTS
    )

    warehouse_url: str
    models: tuple[str, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    simulated_as_of: date
    ingest: IngestSettings
    limits: LimitSettings
    universes: dict[str, str]
    profiles: dict[str, Profile]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, settings.toml: the first that has a value wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def profile(self, universe: str) -> Profile:
        """The profile of one universe. Raises SettingsError when it has none, or for a graph that does not exist."""
        # Here and not when the settings are built: the catalogue's import takes half a second, and most commands read
        # no profile.
        from models.graphs.catalogue import check_names
        from models.graphs.snapshot import GraphError

        try:
            profile = self.profiles[self.universes[universe]]
        except KeyError:
            names = ", ".join(self.universes)
            raise SettingsError(
                f"universe {universe!r} has no profile in {DEFAULTS}; those that have: {names}"
            ) from None
        try:
            check_names(profile.graph.graphs)
        except GraphError as error:
            where = f"profiles.{self.universes[universe]}.graph.graphs"
            raise SettingsError(f"{where}: {error} (environment NIGHTLY_…, or {DEFAULTS})") from error
        return profile

    def fingerprint(self, universe: str) -> dict[str, Any]:
        """The settings that the numbers of one universe's night depend on, as values that JSON can hold."""
        limits = self.limits.model_dump(mode="json")
        profile = self.profile(universe).model_dump(mode="json")
        return {"models": list(self.models), "seeds": list(self.seeds), "limits": limits, **profile}


def load_settings(**arguments: Any) -> Settings:
    """The settings, overridden by those ``arguments`` that are not None. Raises SettingsError."""
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"settings are not usable: {wrong} (environment NIGHTLY_…, or {DEFAULTS})") from error
