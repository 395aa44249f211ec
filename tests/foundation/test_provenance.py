"""Which code made a result: hashes that change with what matters and with nothing else."""

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from mlops_assets.foundation import provenance


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a few modules in the place of the real one."""
    folder = tmp_path / "checkout" / "package"
    (folder / "system").mkdir(parents=True)
    for name in (
        "__init__",
        "system/__init__",
        "system/model",
        "system/_model_parts",
        "system/_modeling",
        "system/other",
    ):
        (folder / f"{name}.py").write_text(f"# {name}\n", encoding="utf-8")
    monkeypatch.setattr(provenance, "_PACKAGE", folder)
    for cached in (provenance.package_sha256, provenance.git_commit):
        monkeypatch.setattr(provenance, cached.__name__, cached.__wrapped__)
    # What a hook of git sets would send every question about a folder elsewhere.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    return folder


def _changed(package: Path, name: str) -> None:
    with (package / f"{name}.py").open("a", encoding="utf-8") as file:
        file.write("# another way to do it\n")


# --- Versions of modules ---


@pytest.mark.parametrize(
    ("changed", "other"),
    [("system/model", True), ("system/_model_parts", True), ("system/_modeling", False), ("system/other", False)],
)
def test_a_version_follows_its_modules_and_their_private_parts(package: Path, changed: str, *, other: bool) -> None:
    before = provenance.code_version("system", "model")
    _changed(package, changed)
    assert (provenance.code_version("system", "model") != before) is other


def test_versions_tell_modules_and_their_order_apart(package: Path) -> None:
    found = {
        provenance.code_version("system", *modules)
        for modules in (("model",), ("other",), ("model", "other"), ("other", "model"))
    }
    assert len(found) == 4
    assert all(len(version) == 12 for version in found)


def test_a_module_that_is_not_there_is_an_error_and_no_version(package: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"models\.py"):
        provenance.code_version("system", "models")


# --- The whole package ---


def test_the_packages_hash_knows_every_module_by_name_and_content(package: Path) -> None:
    before = provenance.package_sha256()
    _changed(package, "system/other")
    changed = provenance.package_sha256()
    (package / "system" / "other.py").rename(package / "system" / "others.py")
    assert len({before, changed, provenance.package_sha256()}) == 3


def test_the_packages_hash_is_the_same_wherever_it_is_installed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = provenance.package_sha256()
    copy = Path(shutil.copytree(package, tmp_path / "elsewhere" / "package"))
    (copy / "notes.txt").write_text("no code", encoding="utf-8")
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    assert provenance.package_sha256() == before


def test_the_environment_is_named_by_what_is_installed() -> None:
    found = provenance.environment_sha256()
    assert len(found) == 64
    assert provenance.environment_sha256.__wrapped__() == found


# --- The commit ---


def _git(folder: Path, *command: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    told = subprocess.run(["git", "-C", str(folder), *settings, *command], capture_output=True, text=True, check=True)
    return told.stdout.strip()


@pytest.fixture
def checkout(package: Path) -> Path:
    """The package's checkout, with everything committed."""
    folder = package.parent
    _git(folder, "init", "-q")
    _git(folder, "add", "package")
    _git(folder, "commit", "-q", "-m", "All of it")
    return folder


def test_a_checkout_tells_its_commit(checkout: Path) -> None:
    assert provenance.git_commit() == _git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("what", ["system/model", "system/new"])
def test_code_that_was_never_committed_is_told(checkout: Path, package: Path, what: str) -> None:
    _changed(package, what)
    assert provenance.git_commit() == _git(checkout, "rev-parse", "HEAD") + "+changes"


def test_changes_beside_the_package_are_no_changes_of_it(checkout: Path) -> None:
    (checkout / "README.md").write_text("new", encoding="utf-8")
    assert provenance.git_commit() == _git(checkout, "rev-parse", "HEAD")


def test_without_a_checkout_there_is_no_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(package.parents[1]))
    assert provenance.git_commit() is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "nothing"))
    assert provenance.git_commit() is None


def test_the_commit_of_somebody_elses_checkout_is_not_this_packages(package: Path) -> None:
    """The package is installed in the environment of a project, in a folder that the project ignores."""
    folder = package.parent
    _git(folder, "init", "-q")
    (folder / ".gitignore").write_text("package\n", encoding="utf-8")
    _git(folder, "add", ".gitignore")
    _git(folder, "commit", "-q", "-m", "A project of its own")
    assert provenance.git_commit() is None


def test_facts_name_code_machine_and_the_libraries_asked_for() -> None:
    found = provenance.facts("numpy", "pandas")
    assert list(found) == [
        "package_sha256", "git_commit", "environment_sha256", "python", "machine", "numpy", "pandas",
    ]  # fmt: skip
    assert (found["numpy"], found["pandas"]) == (metadata.version("numpy"), metadata.version("pandas"))
    assert "/" not in str(found["machine"])
