"""The whole code location: every system on one set of resources.

What belongs here: assembly. What does not: anything that computes, and any environment's details (environment.py).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from mlops_assets import __version__, environment
from mlops_assets.environment import Environment
from mlops_assets.foundation.errors import UserError
from mlops_assets.systems import AnySpec, default_specs, definitions_of, load_any_spec

SPECS_VARIABLE = "MLOPS_ASSETS_SPECS"
CONCURRENT_VARIABLE = "MLOPS_ASSETS_MAX_CONCURRENT"


def configured_specs(settings: Mapping[str, str] | None = None) -> list[AnySpec]:
    """Return the default systems and those of the YAML files that ``MLOPS_ASSETS_SPECS`` lists.

    The files are separated as in PATH. A file whose spec has the name of a default replaces it.

    Raises
    ------
    UserError
        A file cannot be used, or two specs have one name.
    """
    values = os.environ if settings is None else settings
    paths = [Path(text) for text in values.get(SPECS_VARIABLE, "").split(os.pathsep) if text.strip()]
    given = [load_any_spec(path) for path in paths]
    names = [spec.name for spec in given]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(
            f"more than one spec is named {', '.join(doubled)}",
            where=SPECS_VARIABLE,
            remedy="give each its own `name:`.",
        )
    return [*(spec for spec in default_specs() if spec.name not in names), *given]


def build_defs(
    where: Environment | None = None,
    specs: Sequence[AnySpec] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> dg.Definitions:
    """Return fresh definitions of the code location.

    Parameters
    ----------
    where
        The environment; by default the one that ``MLOPS_ASSETS_ENV`` names.
    specs
        The systems; by default those that are configured.
    overrides
        Resources by name that replace the environment's own, as a test needs it.
    """
    place = where or environment.current()
    systems = [definitions_of(spec, place) for spec in (configured_specs() if specs is None else specs)]
    resources = {**place.resources(), **(overrides or {})}
    common = dg.Definitions(resources=resources, executor=_executor(), metadata={"mlops_assets": __version__})
    return dg.Definitions.merge(*systems, common)


def _executor() -> dg.ExecutorDefinition:
    """Return processes that are forked from one that has loaded Dagster already: a step starts in a second."""
    return dg.multiprocess_executor.configured(
        {
            "max_concurrent": _max_concurrent(),
            "start_method": {"forkserver": {"preload_modules": ["dagster", "pandas", "pyarrow"]}},
        }
    )


def _max_concurrent() -> int:
    text = os.environ.get(CONCURRENT_VARIABLE) or "2"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(
            f"{text!r} is no number of steps", where=CONCURRENT_VARIABLE, remedy="set it to a whole number from 1 on."
        )
    return int(text)


@dg.definitions
def defs() -> dg.Definitions:
    """The code location, as Dagster loads it."""
    return build_defs()
