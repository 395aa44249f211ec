"""What consumers and operators look up: a playlist, and the state of a system.

What belongs here: reading what is published and recorded. What does not: changing anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pandas as pd

from mlops_assets.environment import Environment
from mlops_assets.foundation.check_history import latest_checks
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.publication import Publication, newest_first, published

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.foundation.resources import Warehouse


@dataclass(frozen=True)
class Playlist:
    """One user's published playlist with titles; `rows` is ordered by rank."""

    period: str
    rows: pd.DataFrame


def playlist_of(environment: Environment, system: str, user: str, period: str | None = None) -> Playlist:
    """Return a user's published playlist.

    Raises
    ------
    UserError
        Nothing is published for the period, or the user has no playlist in it.
    """
    import pyarrow.compute as pc

    resources: Mapping[str, Any] = environment.resources()
    publication = _publication(resources, system, period)
    found = pd.concat(
        [table.to_pandas() for table in publication.tables(filters=pc.field("user_id") == user)] or [pd.DataFrame()]
    )
    if found.empty:
        raise UserError(
            f"{user!r} has no playlist",
            where=f"{system} {publication.partition}",
            remedy="check the user's id; users who joined later are in a later period.",
        )
    tracks = resources["warehouse"].query(f"select track_id, title, artist_id from {system}.tracks")
    rows = found.merge(tracks, on="track_id", how="left").sort_values("rank", ignore_index=True)
    return Playlist(publication.partition, rows)


def _publication(resources: Mapping[str, Any], system: str, period: str | None) -> Publication:
    root = resources["store"].path()
    if period is not None:
        found = published(root, f"{system}/playlists", period)
        if found is not None:
            return found
    damaged: dict[str, str] = {}
    everything = list(islice(newest_first(root, f"{system}/playlists", damaged=damaged), 5))
    if period is None and everything:
        return everything[0]
    there = ", ".join(item.partition for item in reversed(everything)) or "none"
    raise UserError(
        f"no playlists are published for {period or 'any period'}",
        where=system,
        remedy=f"published periods: {there}; run `mlops-assets demo` or `mlops-assets run SPEC.yaml` to make some.",
    )


@dataclass(frozen=True)
class SystemState:
    """What an operator wants to know first."""

    system: str
    champion: str
    verdict: str
    published: str
    quarantine: str
    checks: str
    problems: tuple[str, ...]
    unassessed: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return the state as rows of name and value."""
        return [
            ("champion", self.champion),
            ("last verdict", self.verdict),
            ("published", self.published),
            ("quarantine", self.quarantine),
            ("checks", self.checks),
            *[("not passed", text) for text in self.problems],
            *[("not assessed", text) for text in self.unassessed],
        ]


def status_of(environment: Environment, instance: "dg.DagsterInstance", system: str) -> SystemState:
    """Return the state of one system from the event log and the published pointers."""
    from mlops_assets.foundation.registry import ChampionHistory

    resources: Mapping[str, Any] = environment.resources()
    history = ChampionHistory(instance, system, resources["models"].open(), f"{system}.blend_model")
    current, records = history.current(), history.records()
    champion = "none yet"
    if current is not None:
        champion = f"version {current.version} since {current.logged_at:%Y-%m-%d %H:%M} UTC ({current.reason})"
    verdict = (
        f"{records[-1].verdict} (candidate {records[-1].candidate}): {records[-1].reason}" if records else "none yet"
    )
    damaged: dict[str, str] = {}
    last = next(newest_first(resources["store"].path(), f"{system}/playlists", damaged=damaged), None)
    latest = f"{last.partition}, {last.rows:,} rows at {last.published_at}" if last else "nothing yet"
    passed, problems, unassessed = latest_checks(instance, system, _named())
    broken = tuple(f"publication of {period}: {reason}" for period, reason in damaged.items())
    told = f"{passed} passed, {len(problems)} not passed, {len(unassessed)} not assessed"
    quarantine = _quarantine(resources["warehouse"], system)
    return SystemState(system, champion, verdict, latest, quarantine, told, (*broken, *problems), unassessed)


def _named() -> dict[str, tuple[str, ...]]:
    from mlops_assets.discover_weekly.rules import RULES

    return {
        "listens": ("few_rows_in_quarantine", "listens_match_profile", "listens_have_not_drifted"),
        "interactions": (
            "interactions_match_profile", "interactions_have_not_drifted",
            "interactions_are_of_known_tracks", "interactions_are_of_known_users",
        ),
        "playlists": tuple(RULES),
    }  # fmt: skip


def _quarantine(warehouse: "Warehouse", system: str) -> str:
    """Say how many rows of each data set are set apart under which rule, and where they are."""
    with warehouse.session() as tables:
        if not tables.exists(f"{system}.quarantined_rows"):
            return "nothing yet"
        found = tables.query(
            f"select dataset || ' ' || rule as what, count(*) as n from {system}.quarantined_rows "
            "group by 1 order by 2 desc, 1"
        )
    rows = ", ".join(f"{what} {count:,}" for what, count in zip(found["what"], found["n"], strict=True))
    return f"{rows} (table {system}.quarantined_rows)" if rows else "no rows"
