"""Profiles of tables: log them in bounded memory, merge, store, and check them against a reference.

What belongs here: whylogs profiles and the rules on them. What does not: distances between distributions
(``drift``), row-level rules and quarantine (``contracts``), and what a failed rule means for a system.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
from upath import UPath

from mlops_assets.foundation._cells import ColumnLog, read_cells
from mlops_assets.foundation._profile_rules import (
    ColumnSummary,
    Finding,
    Kind,
    ProfileBounds,
    Status,
    findings_table,
    judge,
    moment,
    rounded,
)
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import names_in, read_bytes, write_atomic

__all__ = [
    "ColumnSummary",
    "Finding",
    "Kind",
    "Profile",
    "ProfileBounds",
    "ProfileStore",
    "Status",
    "check",
    "findings_table",
    "profile",
]

_CHUNK_ROWS = 100_000
_DIGEST = 32
_METADATA = "mlops_assets"
_SUFFIX = ".profile"
_TABLE_ROWS = 20
_DEFAULT_BOUNDS = ProfileBounds()


class Profile:
    """What a table looks like: counts, types, quantiles and distinct values of every column, but no text of it.

    Counts, minimum and maximum are exact, also after a merge; quantiles are good to about 0.2 % of rank and
    ``distinct`` to about 2 %, because they are sketches. The bytes of two profiles of the same data differ:
    never use them as a fingerprint of data.

    Parameters
    ----------
    view
        A whylogs ``DatasetProfileView``.
    order
        The columns in the order of the table.
    temporal
        For a column that holds any, the numbers of its datetimes and durations, which ``view`` knows as seconds.
    batches
        How many batches the profile covers, so that row counts can be compared batch by batch.
    """

    def __init__(
        self, view: Any, *, order: Sequence[str], temporal: Mapping[str, tuple[int, int]], batches: int = 1
    ) -> None:
        self.view = view
        self.columns = tuple(order)
        self.batches = batches
        self.temporal = dict(temporal)

    @property
    def rows(self) -> int:
        """Number of rows logged."""
        return max((int(self.view.get_column(name).get_metric("counts").n.value) for name in self.columns), default=0)

    def merge(self, other: "Profile", *, same_batch: bool = False) -> "Profile":
        """Return the profile of both tables together; neither is changed.

        Parameters
        ----------
        other
            The profile to add.
        same_batch
            True where both are parts of one batch (shards), False where each is a batch of its own.
        """
        temporal = dict(self.temporal)
        for name, (datetimes, durations) in other.temporal.items():
            before = temporal.get(name, (0, 0))
            temporal[name] = (before[0] + datetimes, before[1] + durations)
        return Profile(
            self.view.merge(other.view),
            order=[*self.columns, *(name for name in other.columns if name not in self.columns)],
            temporal=temporal,
            batches=max(self.batches, other.batches) if same_batch else self.batches + other.batches,
        )

    def to_bytes(self) -> bytes:
        """Return a whylogs profile file followed by the SHA-256 of its bytes."""
        from whylogs.core.view.dataset_profile_view import DatasetProfileView

        now = datetime.now(UTC)
        own = {"batches": self.batches, "columns": self.columns, "temporal": self.temporal}
        data: bytes = DatasetProfileView(
            columns=self.view.get_columns(),
            dataset_timestamp=now,
            creation_timestamp=now,
            metadata={_METADATA: json.dumps(own)},
        ).serialize()
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "profile") -> "Profile":
        """Read what ``to_bytes`` wrote.

        Raises
        ------
        UserError
            The bytes are truncated, altered or no profile at all; ``where`` names the file.
        """
        from whylogs.core.view.dataset_profile_view import DatasetProfileView

        body, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            raise UserError(
                f"this is no profile, or a damaged one ({len(data)} bytes)",
                where=where,
                remedy="delete the file and materialize the profile of this partition again from its data.",
            )
        # The hash has held: a profile without columns is one of an empty batch, which whylogs takes for damage.
        logging.getLogger(DatasetProfileView.__module__).setLevel(logging.ERROR)
        view = DatasetProfileView.deserialize(body)
        own = json.loads(view.metadata[_METADATA])
        return cls(
            DatasetProfileView(columns=view.get_columns(), dataset_timestamp=None, creation_timestamp=None),
            order=own["columns"],
            temporal={name: (int(counts[0]), int(counts[1])) for name, counts in own["temporal"].items()},
            batches=int(own["batches"]),
        )

    def column(self, name: str) -> ColumnSummary:
        """Summarise one column of ``columns``."""
        found = self.view.get_column(name)
        counts, types = found.get_metric("counts"), found.get_metric("types")
        distribution = found.get_metric("distribution")
        datetimes, durations = self.temporal.get(name, (0, 0))
        numeric = int(types.integral.value) + int(types.fractional.value)
        kinds: dict[Kind, int] = {
            "number": numeric - datetimes - durations,
            "boolean": int(types.boolean.value),
            "text": int(types.string.value),
            "datetime": datetimes,
            "duration": durations,
            "other": int(types.object.value),
        }
        values = sum(kinds.values())
        kind: Kind = max(kinds, key=lambda each: kinds[each]) if values else "empty"
        known = distribution.n > 0
        sketch = distribution.kll.value
        q05, q50, q95 = sketch.get_quantiles([0.05, 0.5, 0.95]) if known else (float("nan"),) * 3
        top = max((item.est for item in found.get_metric("frequent_items").strings), default=0)
        return ColumnSummary(
            column=name,
            kind=kind,
            rows=int(counts.n.value),
            nulls=int(counts.null.value),
            kinds=kinds,
            infinite=int(counts.inf.value),
            distinct=min(float(found.get_metric("cardinality").estimate or 0.0), float(values)),
            minimum=sketch.get_min_value() if known else float("nan"),
            maximum=sketch.get_max_value() if known else float("nan"),
            mean=distribution.avg if known else float("nan"),
            stddev=distribution.stddev if known else float("nan"),
            q05=q05,
            q50=q50,
            q95=q95,
            top_share=top / values if values else float("nan"),
        )

    def summary(self) -> pd.DataFrame:
        """Return one row a column at full precision; datetimes and durations in seconds."""
        names = ["column", "kind", "rows", "null_share", "distinct", "minimum", "maximum", "mean", "stddev"]
        names += ["q05", "q50", "q95"]
        rows = [[getattr(summary, name) for name in names] for summary in map(self.column, self.columns)]
        return pd.DataFrame(rows, columns=pd.Index(names))

    def table(self, limit: int = _TABLE_ROWS) -> pd.DataFrame:
        """Return the summary for display: four digits, datetimes as text, at most ``limit`` rows."""
        frame = self.summary().head(limit).astype(object)
        frame["null_share"] = [rounded(value) for value in frame["null_share"]]
        frame["distinct"] = [round(value) for value in frame["distinct"]]
        for name in ("minimum", "maximum", "mean", "q05", "q50", "q95"):
            frame[name] = [
                moment(value) if kind == "datetime" else rounded(value)
                for value, kind in zip(frame[name], frame["kind"], strict=True)
            ]
        frame["stddev"] = [rounded(value) for value in frame["stddev"]]
        if len(self.columns) > limit:
            more = f"… and {len(self.columns) - limit + 1} more"
            frame.loc[limit - 1] = [more, *[None] * (frame.shape[1] - 1)]
        return frame


def _chunks(batches: Iterable[pd.DataFrame] | pd.DataFrame) -> Iterator[pd.DataFrame]:
    for batch in [batches] if isinstance(batches, pd.DataFrame) else batches:
        for start in range(0, max(len(batch), 1), _CHUNK_ROWS):
            yield batch.iloc[start : start + _CHUNK_ROWS]


def profile(batches: Iterable[pd.DataFrame] | pd.DataFrame) -> Profile:
    """Profile one batch of data, given whole or in pieces, in memory bounded by the largest piece.

    Parameters
    ----------
    batches
        One frame, or the frames that make up the batch. They may hold any dtype; columns may differ.

    Raises
    ------
    UserError
        Two columns of a frame have the same name.
    """
    from whylogs.core.view.dataset_profile_view import DatasetProfileView

    logs: dict[str, ColumnLog] = {}
    for chunk in _chunks(batches):
        names = [str(name) for name in chunk.columns]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"more than one column is called {', '.join(map(repr, doubled))}",
                where="data to profile",
                remedy="rename or drop the doubled columns where the table is read.",
            )
        for position, name in enumerate(names):
            logs.setdefault(name, ColumnLog()).add(read_cells(chunk.iloc[:, position]))
    columns = {name: log.view() for name, log in logs.items()}
    return Profile(
        DatasetProfileView(columns=columns, dataset_timestamp=None, creation_timestamp=None),
        order=list(logs),
        temporal={name: (log.datetimes, log.durations) for name, log in logs.items()},
    )


class ProfileStore:
    """Profiles by data set and partition, one file each, under ``root``."""

    def __init__(self, root: UPath) -> None:
        self.root = root

    def _folder(self, dataset: str) -> UPath:
        parts = dataset.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise UserError(
                f"{dataset!r} does not name a data set",
                where="profile store",
                remedy="use names separated by single slashes, such as 'system/table'.",
            )
        return self.root.joinpath(*(quote(part, safe="") for part in parts))

    def _path(self, dataset: str, partition: str) -> UPath:
        return self._folder(dataset) / f"{quote(partition, safe='')}{_SUFFIX}"

    def save(self, dataset: str, partition: str, profile: Profile) -> UPath:
        """Write a profile atomically, in place of an older one of the partition, and return its path."""
        path = self._path(dataset, partition)
        write_atomic(path, profile.to_bytes())
        return path

    def load(self, dataset: str, partition: str) -> Profile:
        """Read the profile of one partition.

        Raises
        ------
        UserError
            There is none, or its file is damaged.
        """
        path = self._path(dataset, partition)
        try:
            data = read_bytes(path)
        except FileNotFoundError as error:
            raise UserError(
                f"there is no profile of partition {partition!r}",
                where=str(path),
                remedy=f"materialize the profile of {dataset!r} for this partition first.",
            ) from error
        return Profile.from_bytes(data, where=str(path))

    def partitions(self, dataset: str) -> list[str]:
        """List the partitions that have a profile, sorted by name."""
        return sorted(
            unquote(name.removesuffix(_SUFFIX))
            for name in names_in(self._folder(dataset))
            if name.endswith(_SUFFIX) and not name.startswith(".")
        )

    def reference(self, dataset: str, partitions: Sequence[str]) -> Profile:
        """Merge the profiles of several partitions into one reference.

        Raises
        ------
        UserError
            No partition is named, one of them has no profile, or a file is damaged.
        """
        if not partitions:
            raise UserError(
                f"no partition of {dataset!r} is named, so there is nothing to compare with",
                where="profile store",
                remedy="name at least one earlier partition.",
            )
        merged = self.load(dataset, partitions[0])
        for partition in partitions[1:]:
            merged = merged.merge(self.load(dataset, partition))
        return merged


def check(profile: Profile, reference: Profile, bounds: ProfileBounds = _DEFAULT_BOUNDS) -> list[Finding]:
    """Compare a batch's profile with a reference's, rule by rule and column by column.

    A rule that does not apply to the type of a column gives no finding; one that applies but cannot be judged
    (an empty batch, too few rows, all cells missing) gives ``not_assessed``, never ``passed``.

    ======  ===============  ==============================================================================
    code    rule             fails when
    ======  ===============  ==============================================================================
    PRF001  column_present   a column of the reference is missing
    PRF002  no_new_column    a column is not in the reference
    PRF003  row_count        the batch is much smaller or larger than a batch of the reference, or empty
    PRF004  null_share       more cells are missing, beyond sampling noise
    PRF005  range            values lie far outside the reference's range
    PRF006  distinct_values  the number of distinct values has jumped, for the size of the batch
    PRF007  type             values are of another type, such as text in a column of numbers
    PRF008  median_ratio     the median has moved by a factor, as after a change of unit
    PRF009  constant         all values are the same, which the reference makes very unlikely
    PRF010  infinite         a larger share of the values is infinite
    ======  ===============  ==============================================================================

    Parameters
    ----------
    profile
        The batch.
    reference
        What it should look like, for instance ``ProfileStore.reference`` of earlier partitions.
    bounds
        How far the batch may be off.
    """
    return judge(
        [profile.column(name) for name in profile.columns],
        [reference.column(name) for name in reference.columns],
        rows=profile.rows,
        usual_rows=reference.rows / reference.batches,
        bounds=bounds,
    )
