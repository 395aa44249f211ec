"""The three layers, read from the source: logic knows no Dagster, the foundation no system, a system no other."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mlops_assets"

# Modules that Dagster is the subject of, by the end of their name. All others are logic.
DAGSTER_MODULES = {
    "assets", "checks", "automation", "defs", "definitions", "metadata", "results", "names", "dbt_assets",
    "data_assets", "model_assets", "decision_assets", "review_assets", "governance",
    "io_managers", "table_io", "environment", "resources", "retries", "snapshots", "running", "cli", "demo_credit",
}  # fmt: skip
# Logic that meets Dagster inside one function, where an object of Dagster's is what the caller hands over or gets:
# the champion's history lives in the event log, and the state of a system is read from it.
MEETS_DAGSTER_IN_FUNCTIONS = {
    "foundation/_champion_log.py", "foundation/_champion_record.py", "foundation/check_history.py",
    "credit_risk/evidence.py", "credit_risk/witnesses.py",
}  # fmt: skip
SHARED = {"foundation", "samples"}
NOT_A_SYSTEM = {*SHARED, "components"}
STORED_CODE = {"pickle", "cPickle", "_pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal"}


@dataclass(frozen=True)
class Imported:
    """One import: what, in which line, and whether it is paid when the module is loaded."""

    name: str
    line: int
    at_load: bool
    for_types: bool


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def ids(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports_of(tree: ast.AST) -> Iterator[Imported]:
    yield from _walk(tree, at_load=True, for_types=False)


def _walk(node: ast.AST, *, at_load: bool, for_types: bool) -> Iterator[Imported]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Imported(alias.name, child.lineno, at_load, for_types) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative imports are banned"
            for alias in child.names:
                yield Imported(f"{child.module}.{alias.name}", child.lineno, at_load, for_types)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, at_load=at_load and not inside, for_types=for_types or guarded)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def system_of(path: Path) -> str | None:
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest and first not in NOT_A_SYSTEM else None


def systems() -> set[str]:
    return {name for path in modules() if (name := system_of(path))}


def is_dagster(name: str) -> bool:
    return name.partition(".")[0] == "dagster" or name.startswith("dagster_")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import dagster as dg", [("dagster", True, False)]),
        ("from dagster import asset", [("dagster.asset", True, False)]),
        ("def f():\n    import dagster", [("dagster", False, False)]),
        ("if TYPE_CHECKING:\n    import dagster", [("dagster", True, True)]),
        ("class A:\n    import dagster", [("dagster", True, False)]),
        ("try:\n    import dagster\nexcept ImportError:\n    pass", [("dagster", True, False)]),
    ],
)
def test_the_reader_of_imports_sees_where_an_import_is(code: str, expected: list[tuple[str, bool, bool]]) -> None:
    assert [(item.name, item.at_load, item.for_types) for item in imports_of(ast.parse(code))] == expected


def test_the_package_has_modules_and_systems_to_judge() -> None:
    assert len(modules()) > 30
    assert {"credit_risk", "discover_weekly"} <= systems()


@pytest.mark.parametrize("path", [path for path in modules() if path.stem not in DAGSTER_MODULES], ids=ids)
def test_logic_does_not_import_dagster(path: Path) -> None:
    found = [item for item in imports_of(tree_of(path)) if is_dagster(item.name) and not item.for_types]
    if ids(path) in MEETS_DAGSTER_IN_FUNCTIONS:
        found = [item for item in found if item.at_load]
    assert [f"line {item.line}: {item.name}" for item in found] == []


@pytest.mark.parametrize("name", sorted(MEETS_DAGSTER_IN_FUNCTIONS))
def test_an_exception_from_the_rule_is_still_needed(name: str) -> None:
    assert any(is_dagster(item.name) and not item.for_types for item in imports_of(tree_of(PACKAGE / name)))


@pytest.mark.parametrize(
    "path", [path for path in modules() if path.relative_to(PACKAGE).parts[0] == "foundation"], ids=ids
)
def test_the_foundation_knows_no_system_and_no_assembly(path: Path) -> None:
    allowed = ("mlops_assets.foundation.", "mlops_assets.__version__")
    own = [item.name for item in imports_of(tree_of(path)) if item.name.partition(".")[0] == "mlops_assets"]
    assert [name for name in own if not name.startswith(allowed)] == []


@pytest.mark.parametrize(
    "path", [path for path in modules() if path.relative_to(PACKAGE).parts[0] == "samples"], ids=ids
)
def test_a_sample_world_knows_no_system(path: Path) -> None:
    own = [item.name for item in imports_of(tree_of(path)) if item.name.partition(".")[0] == "mlops_assets"]
    assert [name for name in own if name.split(".")[1] not in SHARED] == []


@pytest.mark.parametrize("path", [path for path in modules() if system_of(path)], ids=ids)
def test_a_system_knows_no_other_system_and_not_the_code_location(path: Path) -> None:
    allowed = {system_of(path), *SHARED, "environment"}
    own = [item.name for item in imports_of(tree_of(path)) if item.name.partition(".")[0] == "mlops_assets"]
    assert [name for name in own if name.split(".")[1] not in allowed] == []


@pytest.mark.parametrize("path", modules(), ids=ids)
def test_nothing_stores_or_loads_code_as_data(path: Path) -> None:
    found = [item for item in imports_of(tree_of(path)) if item.name.partition(".")[0] in STORED_CODE]
    assert [f"line {item.line}: {item.name}" for item in found] == []


@pytest.mark.parametrize("path", modules(), ids=ids)
def test_numpy_never_loads_pickled_objects(path: Path) -> None:
    loads = [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}
    ]
    allowing = [
        node.lineno
        for node in loads
        if any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords)
    ]
    assert allowing == []


@pytest.mark.parametrize("path", [path for path in modules() if path.stem in DAGSTER_MODULES], ids=ids)
def test_annotations_are_not_postponed_where_dagster_reads_them(path: Path) -> None:
    names = [item.name for item in imports_of(tree_of(path))]
    assert "__future__.annotations" not in names


def test_every_module_opens_with_what_belongs_in_it() -> None:
    without = []
    for path in modules():
        text = " ".join((ast.get_docstring(tree_of(path)) or "").split())
        if path.name != "__init__.py" and ("What belongs here" not in text or "What does not" not in text):
            without.append(ids(path))
    assert without == []
