"""What a user may configure about a playlist system, in one YAML file.

What belongs here: names, meanings, bounds and defaults of the settings. What does not: reading data or anything
that acts on a setting.
"""

from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlops_assets.foundation import specs
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.risk import RiskProfile
from mlops_assets.foundation.sources import SampleSource, Source
from mlops_assets.foundation.specs import Block


class Periods(specs.Periods):
    """The rhythm of the system: a partition is a week from Monday, or a month."""

    cadence: Literal["weekly", "monthly"] = Field("weekly", description="How long one partition is.")
    start: date = Field(
        date(2026, 8, 24), description="First day of the first period: a Monday, or a first of a month."
    )

    @property
    def days(self) -> float:
        """Nominal length of a period in days."""
        return 7.0 if self.cadence == "weekly" else 30.4375


class Data(Block):
    """Where listens, tracks and users come from."""

    listens: Source = Field(default_factory=SampleSource)
    tracks: Source | None = Field(None, description="The catalogue; when absent, the tracks that were listened to.")
    track_tags: Source | None = Field(
        None, description="Tags a track, from a table of their own (columns track_id and tags); merged into tracks."
    )
    users: Source | None = Field(None, description="Everybody owed a playlist; when absent, everybody who listened.")
    timed: bool = Field(default=True, description="False when listens carry no time: they are all of the first period.")

    @model_validator(mode="after")
    def _samples_can_be_made(self) -> "Data":
        # A misspelt setting of the sample world would else be met only when it is ingested.
        from mlops_assets.samples.listening import ListeningWorld

        known = {field.name for field in fields(ListeningWorld)} - {"start"}
        for source in (self.listens, self.tracks, self.users):
            if not isinstance(source, SampleSource):
                continue
            unknown = sorted(set(source.parameters) - known)
            if unknown:
                raise ValueError(f"unknown sample setting(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
            try:
                ListeningWorld(**source.parameters)
            except (UserError, TypeError) as error:
                raise ValueError(str(error)) from error
        return self


class Training(Block):
    """What the models learn from."""

    history_periods: int = Field(26, ge=1, description="Periods of history that models and playlists look back on.")
    half_life_periods: float = Field(8.0, gt=0, description="A play this many periods old counts half.")
    skip_weight: float = Field(0.5, ge=0, description="What a skip takes away from the plays.")
    max_users: int = Field(
        2_000_000, ge=10, description="Users that are trained on (a seeded sample); all others are folded in."
    )
    seed: int = Field(7, ge=0)


class Sweep(Block):
    """The search for the collaborative model's hyper-parameters, on a split of the training data."""

    trials: int = Field(24, ge=0, description="0 takes the values given under `collaborative` as they are.")
    regularization: tuple[float, float] = Field((1.0, 100.0), description="Searched on a logarithmic scale.")
    alpha: tuple[float, float] = Field((1.0, 20.0), description="Searched on a logarithmic scale.")
    factors: tuple[int, ...] = Field((), description="Lengths tried in turn; only `collaborative.factors` when empty.")


class Collaborative(Block):
    """Implicit ALS."""

    factors: int = Field(64, ge=2, le=512)
    regularization: float = Field(40.0, gt=0)
    alpha: float = Field(10.0, gt=0)
    iterations: int = Field(15, ge=1, le=200)
    weighting: Literal["binary", "log", "linear"] = "binary"
    sweep: Sweep = Field(default_factory=Sweep)


class Content(Block):
    """Tags and lyrics to a place in the collaborative model's space."""

    min_df: int = Field(2, ge=1, description="A term counts when this many tracks have it.")
    max_features: int = Field(50_000, ge=10, description="Terms kept of tags, and of lyrics.")
    tags_weight: float = Field(1.0, ge=0)
    lyrics_weight: float = Field(0.7, ge=0)


class EvaluationRules(Block):
    """How a candidate is judged."""

    split: Literal["auto", "time", "stratified"] = Field(
        "auto", description="auto: by time where there are enough periods, else a stratified split by user."
    )
    holdout_periods: int = Field(1, ge=1, description="Periods at the end that are held out from training.")
    k: int = Field(10, ge=1, description="Length of the list that decides.")
    max_users: int = Field(5_000, ge=50, description="Users that a model is judged on (a seeded sample).")
    must_beat: tuple[Literal["popular", "item_item"], ...] = Field(
        ("popular",), description="Baselines that a champion has to beat by its interval."
    )
    champion_max_age: int = Field(
        4, ge=1, description="Periods after which a candidate that is as good as the champion replaces it."
    )
    margin: float = Field(0.02, ge=0, lt=1, description="Relative loss that still counts as equally good.")
    seed: int = 42


class PlaylistRules(Block):
    """What a playlist must obey."""

    length: int = Field(30, ge=1, le=500)
    per_artist: int = Field(2, ge=1, description="At most this many tracks of one artist.")
    no_repeat_periods: int = Field(4, ge=0, description="Nothing from this many earlier playlists.")
    shards: int = Field(
        16, ge=1, le=65_536, description="Parts that the users are dealt into; each is done whole or not at all."
    )
    minimum_coverage: float = Field(
        0.02, ge=0, le=1, description="Share of the catalogue that all playlists together should show."
    )


class DataChecks(Block):
    """When ingested data are worth a warning."""

    quarantine_share: float = Field(0.01, ge=0, le=1, description="Share of quarantined rows that still passes.")
    minimum_users: float = Field(
        0.5, ge=0, le=1, description="Share of the users of the last publication below which a batch is not published."
    )
    reference_periods: int = Field(
        4, ge=1, description="Earlier periods that profiles and distributions are compared with."
    )


class Spec(Block):
    """One playlist system."""

    system: Literal["discover_weekly"] = "discover_weekly"
    name: str = Field("discover_weekly", description="Prefix of its asset keys and schema of its tables.")
    description: str = "A fresh playlist for every user, every Monday."
    risk: RiskProfile = Field(default_factory=lambda: RiskProfile(data="low", algorithm="low", output="low"))
    data: Data = Field(default_factory=Data)
    periods: Periods = Field(default_factory=Periods)
    training: Training = Field(default_factory=Training)
    collaborative: Collaborative = Field(default_factory=Collaborative)
    content: Content = Field(default_factory=Content)
    evaluation: EvaluationRules = Field(default_factory=EvaluationRules)
    playlist: PlaylistRules = Field(default_factory=PlaylistRules)
    checks: DataChecks = Field(default_factory=DataChecks)
    base: Path = Field(Path(), description="Folder that relative paths start from: the spec file's own.", exclude=True)

    @field_validator("name")
    @classmethod
    def _is_a_schema_name(cls, value: str) -> str:
        return specs.schema_name(value)


def load_spec(path: Path) -> Spec:
    """Read one YAML file.

    Raises
    ------
    UserError
        The file is missing, is not YAML, or a setting is unknown or out of bounds; every such setting is named.
    """
    return parse_spec(specs.read_yaml(path), where=str(path), base=path.resolve().parent)


def parse_spec(raw: Mapping[str, object], *, where: str, base: Path) -> Spec:
    """Build a spec from plain values; errors list every wrong setting at once."""
    return specs.validated(Spec, raw, where=where, base=base)
