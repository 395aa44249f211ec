"""What the canonical tables of a playlist system must look like.

What belongs here: the columns and row rules of listens, tracks and users. What does not: how a contract splits a
frame (foundation/contracts.py) and where the rows come from (foundation/sources.py).
"""

from datetime import UTC, date, datetime
from typing import Any

import pandas as pd

from mlops_assets.foundation.contracts import (
    Column,
    Contract,
    Rule,
    between,
    max_length,
    not_after,
    not_before,
    one_line,
)

_ID_CHARACTERS = 200
_MOST_PLAYS = 1_000_000
# Before the web there was nothing that could log a listen: an earlier time is a wrong unit, not a memory.
_FIRST_LISTEN = datetime(1995, 1, 1, tzinfo=UTC)
# The oldest recording that can be played back is of 1860; releases are announced months ahead, not decades.
_FIRST_RELEASE = date(1860, 1, 1)
_LAST_RELEASE = date(2100, 1, 1)


def _between_dates(column: str, low: date, high: date) -> Rule:
    def holds(values: "pd.Series[Any]") -> "pd.Series[bool]":
        return values.between(pd.Timestamp(low), pd.Timestamp(high))

    return Rule(f"{column}_in_range", column, holds, f"{low} to {high}")


def listens_contract(*, now: datetime, timed: bool = True) -> Contract:
    """Return the contract of listens: one row a play, or a row with a number of plays.

    Parameters
    ----------
    now
        Latest time that a listen can have; it shows in the bound of the rule ``listened_at_not_after_now``.
    timed
        Whether every listen must carry its time. False for sources that only count: ``listened_at`` may then be
        absent or missing.
    """
    return Contract(
        name="listens",
        columns=(
            Column("user_id", "text", "Who listened."),
            Column("track_id", "text", "To what."),
            Column("listened_at", "time", "When.", required=timed, nullable=not timed),
            Column("plays", "number", "How often; a single play where unknown.", required=False, default=1.0),
            Column("skipped", "flag", "Whether it was skipped.", required=False, default=False),
        ),
        rules=(
            one_line("user_id", _ID_CHARACTERS),
            one_line("track_id", _ID_CHARACTERS),
            not_before("listened_at", _FIRST_LISTEN),
            not_after("listened_at", now, name="listened_at_not_after_now"),
            between("plays", 0, _MOST_PLAYS),
        ),
        time_column="listened_at",
    )


TRACKS = Contract(
    name="tracks",
    columns=(
        Column("track_id", "text", "The track."),
        Column("artist_id", "text", "Who made it; unknown artists are not limited.", required=False, nullable=True),
        Column("title", "text", "Its title.", required=False, nullable=True),
        Column("tags", "text", "Tags, separated by spaces.", required=False, nullable=True),
        Column("lyrics", "text", "The text that is sung.", required=False, nullable=True),
        Column("explicit", "flag", "Whether it is marked as explicit.", required=False, default=False),
        Column("released", "date", "First release; a year or month is its first day.", required=False, nullable=True),
        Column(
            "markets",
            "text",
            "Where it may be played, such as SE|NO; everywhere if missing.",
            required=False,
            nullable=True,
        ),
    ),
    rules=(
        one_line("track_id", _ID_CHARACTERS),
        one_line("artist_id", _ID_CHARACTERS),
        one_line("title", 1_000),
        max_length("tags", 20_000),
        max_length("lyrics", 100_000),
        max_length("markets", 2_000),
        _between_dates("released", _FIRST_RELEASE, _LAST_RELEASE),
    ),
    unique=("track_id",),
)

TRACK_TAGS = Contract(
    name="track_tags",
    columns=(
        Column("track_id", "text", "The track."),
        Column("tags", "text", "Tags, separated by spaces.", nullable=True),
    ),
    rules=(one_line("track_id", _ID_CHARACTERS), max_length("tags", 20_000)),
)

USERS = Contract(
    name="users",
    columns=(
        Column("user_id", "text", "The user."),
        Column("market", "text", "Where the user listens, such as SE.", required=False, nullable=True),
        Column("allow_explicit", "flag", "Whether explicit tracks may be shown.", required=False, default=True),
        Column("joined", "date", "When the user joined.", required=False, nullable=True),
    ),
    rules=(
        one_line("user_id", _ID_CHARACTERS),
        max_length("market", 20),
        _between_dates("joined", _FIRST_LISTEN.date(), _LAST_RELEASE),
    ),
    unique=("user_id",),
)
