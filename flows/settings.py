"""The settings in one frozen object, read from arguments, environment (``NIGHTLY_…``) and settings.toml.

A night is the run for one as-of date; a universe is a named set of symbols; a profile is a group of settings that
universes share.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

DEFAULTS_FILE = Path(__file__).with_name("settings.toml")
BarCount = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class SettingsError(ValueError):
    """A setting is missing, misspelt or out of bounds, or a universe has no profile."""


class SettingsGroup(BaseModel):
    """Base class of a group of settings: unknown names are refused, values cannot change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestSettings(SettingsGroup):
    """How the market's data is fetched."""

    overlap_bars: Annotated[
        int, Field(ge=0, description="number of stored bars that are fetched again, to find restated values")
    ]
    max_bad_fraction: Annotated[
        float, Field(ge=0, le=1, description="the night stops when more than this share of the symbols fails")
    ]
    threads: Annotated[int, Field(ge=1, le=64)]


class LimitSettings(SettingsGroup):
    """Portfolio limits (TGN-38)."""

    max_position: Fraction
    max_correlated_exposure: Fraction
    correlation_threshold: Fraction
    min_confidence: Fraction
    drawdown_trigger: Fraction
    cooldown_sessions: BarCount
    max_leverage: Annotated[float, Field(gt=0)]


class FoldSettings(SettingsGroup):
    """Walk-forward windows, in bars."""

    warmup_bars: BarCount
    train_bars: BarCount
    test_bars: BarCount
    embargo_bars: Annotated[int, Field(ge=0)]


class GraphSettings(SettingsGroup):
    """Names of the graphs to build (see models/graphs/catalogue.py) and their windows.

    ``Settings.profile`` checks the names.
    """

    graphs: Annotated[tuple[str, ...], Field(min_length=1)]
    window_bars: Annotated[int, Field(ge=5, description="with fewer bars the directed graphs have nothing to test")]
    min_correlation: Fraction
    top_k: BarCount
    every_bars: BarCount


class TrainSettings(SettingsGroup):
    """Options of one fit. All other options keep the default of ``models.training.fit.TrainConfig``."""

    epochs: Annotated[int, Field(ge=1, le=1000)]
    chunk_bars: Annotated[int, Field(ge=8)]
    burn_in_bars: Annotated[int, Field(ge=0)]
    context_bars: BarCount

    @model_validator(mode="after")
    def _check_burn_in(self) -> TrainSettings:
        if self.burn_in_bars >= self.chunk_bars:
            raise ValueError(f"burn_in_bars {self.burn_in_bars} must be below chunk_bars {self.chunk_bars}")
        return self


class Profile(SettingsGroup):
    """The settings that depend on the length of a market's bars; horizons are in bars."""

    horizons_bars: Annotated[tuple[BarCount, ...], Field(min_length=1)]
    class_horizon_bars: BarCount
    max_staleness_hours: Annotated[float, Field(gt=0)]
    folds: FoldSettings
    graph: GraphSettings
    train: TrainSettings

    @model_validator(mode="after")
    def _check_class_horizon(self) -> Profile:
        if self.class_horizon_bars not in self.horizons_bars:
            raise ValueError(f"class_horizon_bars {self.class_horizon_bars} is not among {self.horizons_bars}")
        return self


class Settings(BaseSettings):
    """The settings of one flow run. The flow builds them once and passes plain values on."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="NIGHTLY_", env_nested_delimiter="__", toml_file=DEFAULTS_FILE
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
        """Sources in the order of precedence: arguments, environment, settings.toml."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def profile(self, universe: str) -> Profile:
        """The profile of one universe. Raises SettingsError when it has none, or names a graph that does not exist."""
        # The names of graphs are checked here and not when the settings are built: the import of the catalogue takes
        # half a second, and most commands read no profile.
        from models.graphs.catalogue import check_names
        from models.graphs.snapshot import GraphError

        try:
            profile = self.profiles[self.universes[universe]]
        except KeyError:
            names = ", ".join(self.universes)
            raise SettingsError(
                f"universe {universe!r} has no profile in {DEFAULTS_FILE}; universes with a profile: {names}"
            ) from None
        try:
            check_names(profile.graph.graphs)
        except GraphError as error:
            setting = f"profiles.{self.universes[universe]}.graph.graphs"
            raise SettingsError(f"{setting}: {error} (environment NIGHTLY_…, or {DEFAULTS_FILE})") from error
        return profile

    def fingerprint(self, universe: str) -> dict[str, Any]:
        """The settings on which the results of one universe's night depend, as JSON values."""
        limits = self.limits.model_dump(mode="json")
        profile = self.profile(universe).model_dump(mode="json")
        return {"models": list(self.models), "seeds": list(self.seeds), "limits": limits, **profile}


def load_settings(**arguments: Any) -> Settings:
    """The settings; every argument that is not None overrides one. Raises SettingsError."""
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"invalid settings: {details} (environment NIGHTLY_…, or {DEFAULTS_FILE})") from error
