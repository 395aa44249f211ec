"""The systems that this package knows, by the name that a spec gives under ``system:``.

What belongs here: which module builds, reads and runs which system. What does not: anything of a single system.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.environment import Environment
from mlops_assets.foundation import specs
from mlops_assets.foundation.errors import UserError

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.foundation.registry import ChampionHistory

AnySpec = Any
"""A spec of any system: it has a `name`, and a `system` that says whose it is."""

SYSTEMS = ("discover_weekly", "credit_risk")


def default_specs() -> list[AnySpec]:
    """Return the systems that run on their sample worlds without any file."""
    from mlops_assets.credit_risk.sample_spec import default_spec
    from mlops_assets.discover_weekly.spec import Spec

    return [Spec(), default_spec()]


def load_any_spec(path: Path) -> AnySpec:
    """Read the spec of a system from a YAML file; ``system:`` says whose, discover_weekly when it is absent.

    Raises
    ------
    UserError
        The file cannot be used, or names a system that this version does not know.
    """
    from mlops_assets.credit_risk.spec import parse_spec as credit_risk
    from mlops_assets.discover_weekly.spec import parse_spec as discover_weekly

    raw = specs.read_yaml(path)
    readers = {"discover_weekly": discover_weekly, "credit_risk": credit_risk}
    system = raw.get("system", "discover_weekly")
    if not isinstance(system, str) or system not in readers:
        raise UserError(
            f"unknown system {system!r}", where=str(path), remedy=f"write `system:` with one of {', '.join(SYSTEMS)}."
        )
    return readers[system](raw, where=str(path), base=path.resolve().parent)


def definitions_of(spec: AnySpec, place: Environment) -> "dg.Definitions":
    """Return the definitions of the system that a spec describes."""
    from importlib import import_module

    # Only the system that is asked for is loaded.
    definitions: dg.Definitions = import_module(f"mlops_assets.{spec.system}.defs").build_defs(spec, place)
    return definitions


def known_systems(instance: "dg.DagsterInstance") -> dict[str, str]:
    """Return the systems that any run was ever about: name to what kind of system it is."""
    marks = {"listens": "discover_weekly", "applications": "credit_risk"}
    found = {key.path[0]: marks[key.path[1]] for key in instance.all_asset_keys() if key.path[-1] in marks}
    return dict(sorted(found.items()))


def spec_named(name: str, system: str) -> AnySpec:
    """Return the configured spec of a name; of a credit model that is not configured, one with just its name.

    What is read of such a system (its champion, its decisions, its incidents) depends on its name alone.
    """
    from mlops_assets.credit_risk.sample_spec import default_spec
    from mlops_assets.definitions import configured_specs

    found = {spec.name: spec for spec in configured_specs() if spec.system == system}
    return found.get(name) or default_spec().model_copy(update={"name": name})


def history_named(name: str, instance: "dg.DagsterInstance", place: Environment) -> "ChampionHistory":
    """Return the champion's history of a system that has run.

    Raises
    ------
    UserError
        No run was ever about such a system.
    """
    from mlops_assets.credit_risk.pipeline import history_of
    from mlops_assets.foundation.registry import ChampionHistory

    known = known_systems(instance)
    models: Any = place.resources()["models"]
    if name in known and known[name] == "credit_risk":
        return history_of(spec_named(name, "credit_risk"), instance, models.open())
    return ChampionHistory(instance, name, models.open(), f"{name}.blend_model")
