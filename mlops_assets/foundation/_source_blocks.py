"""The source blocks of a spec: what a user writes about where the rows come from.

What belongs here: the settings and what is wrong with them, and which of its columns a block asks for. What does not:
reading anything (`sources.py`).
"""

import codecs
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlops_assets.foundation.contracts import TimeFormat, closest, missing_column, refuse_duplicates
from mlops_assets.foundation.errors import UserError

Format = Literal["csv", "tsv", "parquet"]
Scalar = bool | int | float | str

TABLE_PART = r'"(?:[^"]|"")+"|[^."]+'


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lookup(_Block):
    """Replace the codes in a column by the names that another file holds; a code it lacks stays as it is."""

    column: str = Field(description="Canonical column whose values are codes.")
    path: str = Field(description="Delimited text file that holds the names.")
    key: str = Field(description="Its column of codes.")
    value: str = Field(description="Its column of names.")
    format: Literal["csv", "tsv"] | None = Field(default=None, description="Inferred from the suffix when absent.")
    separator: str | None = Field(default=None, description="Between two values of a line.")
    encoding: str = Field(default="utf-8", description="Encoding of the file.")


class Aggregate(_Block):
    """Make one row of all rows of a key: their texts joined by spaces, the most frequent first."""

    by: str = Field(description="Canonical column that is the key.")
    join: str = Field(description="Canonical column of texts; spaces inside a text become underscores.")
    top: int | None = Field(default=None, ge=1, description="At most this many texts for each key.")


class FilesSource(_Block):
    """Delimited text or Parquet files, on this machine or on S3."""

    kind: Literal["files"] = "files"
    path: str | tuple[str, ...] = Field(
        description="One or more paths or patterns (`*`, `**`, `?`), local or s3://; ${VAR} and ${VAR:-default} are "
        "taken from the environment. A relative path starts at the spec file's folder."
    )
    format: Format | None = Field(
        default=None, description="Inferred from the suffix when absent; .dat and .txt need it."
    )
    separator: str | None = Field(default=None, description="Between two values of a line; comma for csv, tab for tsv.")
    quote: str | None = Field(
        default=None, max_length=1, description='Quotation mark; `"` for csv, none (an empty text) for tsv when absent.'
    )
    encoding: str = Field(
        default="utf-8", description="Encoding of text files, such as utf-8, latin-1, cp1252, utf-16."
    )
    header: bool = Field(default=True, description="Whether the first line of a text file holds the column names.")
    names: tuple[str, ...] = Field(default=(), description="Column names of text files without a header.")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="Passed to the file system, such as endpoint_url; ${VAR} is replaced."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Canonical column: column of the source, where the names differ."
    )
    time: TimeFormat = Field(default_factory=TimeFormat, description="How times are written.")
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Keep only rows in which this column of the source has this value."
    )
    lookups: tuple[Lookup, ...] = Field(default=(), description="Codes to be replaced by names from another file.")
    aggregate: Aggregate | None = Field(default=None, description="Many rows of a key joined into one.")
    replace: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Canonical column: texts to be replaced in its values, in order."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError as error:
            msg = f"unknown encoding {value!r}; use utf-8, latin-1, cp1252 or utf-16"
            raise ValueError(msg) from error
        return value

    @model_validator(mode="after")
    def _names_belong_to_headless_files(self) -> "FilesSource":
        if self.header == bool(self.names):
            msg = "`names` goes with `header: false`, and only with it"
            raise ValueError(msg)
        return self


class TableSource(_Block):
    """A table or view of the warehouse."""

    kind: Literal["table"] = "table"
    table: str = Field(
        pattern=rf"^(?:{TABLE_PART})(?:\.(?:{TABLE_PART}))*$",
        description="Name such as schema.table; a part with a dot in it, or whose case matters, in double quotes.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Canonical column: column of the table, where the names differ."
    )
    time: TimeFormat = Field(default_factory=TimeFormat, description="How times are written.")
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Keep only rows in which this column of the table has this value."
    )


class SampleSource(BaseModel):
    """The seeded sample world of a system; further settings go to its generator."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["sample"] = "sample"

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings for the generator."""
        return dict(self.model_extra or {})


Source = Annotated[FilesSource | TableSource | SampleSource, Field(discriminator="kind")]


def check_mapping(source: FilesSource | TableSource, needed: Sequence[str]) -> None:
    """Raise a `UserError` for a column of the block that the table does not have."""
    block: list[str] = list(source.columns)
    if isinstance(source, FilesSource):
        block += [lookup.column for lookup in source.lookups] + list(source.replace)
        block += [source.aggregate.by, source.aggregate.join] if source.aggregate else []
    for name in block:
        if name not in needed:
            guess = closest(name, needed)
            raise UserError(
                f"column {name!r} is no column of this table" + (f"; did you mean {guess!r}?" if guess else ""),
                where=f"source {source.table if isinstance(source, TableSource) else source.path}",
                remedy=f"use one of {', '.join(needed)}.",
            )


def source_columns(
    source: FilesSource | TableSource, needed: Sequence[str], there: Sequence[str], where: str
) -> dict[str, str]:
    """Return canonical column: source column for all that can be had; a mapped column must be there."""
    refuse_duplicates(there, where=where)
    for name in source.where:
        if name not in there:
            raise missing_column(name, there, where=f"{where}, `where`")
    found = {}
    for name in needed:
        wanted = source.columns.get(name, name)
        if wanted in there:
            found[name] = wanted
        elif name in source.columns:
            raise missing_column(name, there, where=where, source_name=wanted)
    return found
