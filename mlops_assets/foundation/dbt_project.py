"""The dbt project: where it is, its manifest, and how one system runs its share of it.

What belongs here: paths, parsing when the project has changed, dbt's command line. What does not: any model's SQL
(the `dbt` folder) and which system selects which models (the systems).
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import write_atomic

_PACKAGE = Path(__file__).resolve().parent.parent


def project_dir() -> Path:
    """Return the folder of the dbt project: the checkout's, or the copy inside an installed wheel."""
    for folder in (_PACKAGE.parent / "dbt", _PACKAGE / "_dbt"):
        if (folder / "dbt_project.yml").is_file():
            return folder
    raise UserError(
        "the dbt project is missing", where=str(_PACKAGE.parent / "dbt"), remedy="install mlops_assets again."
    )


def _fingerprint(project: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(project.rglob("*")):
        inside = path.relative_to(project)
        if path.is_file() and inside.parts[0] not in {"target", "logs", "dbt_packages"}:
            digest.update(str(inside).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def manifest(home: Path) -> Path:
    """Return the project's parsed manifest, made again only when a file of the project has changed.

    Parsing takes some seconds; the result is kept below ``home`` under the hash of the project's files, so two
    processes that start together can only write the same bytes' worth twice.
    """
    project = project_dir()
    kept = home / "dbt" / f"manifest-{_fingerprint(project)}.json"
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                *dbt_executable(), "parse", "--project-dir", str(project), "--profiles-dir", str(project),
                "--target-path", scratch, "--log-path", scratch, "--quiet",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode:
                raise UserError(
                    f"dbt cannot parse the project: {done.stdout[-2000:] or done.stderr[-2000:]}",
                    where=str(project),
                    remedy="mend the model that dbt names.",
                )
            text = (Path(scratch) / "manifest.json").read_text(encoding="utf-8")
        write_atomic(kept, json.dumps(json.loads(text), separators=(",", ":")).encode())
    return kept


def dbt_executable() -> list[str]:
    """Return the dbt command of this Python environment."""
    beside = Path(sys.executable).with_name("dbt")
    found = str(beside) if beside.is_file() else shutil.which("dbt")
    if found is None:
        raise UserError(
            "dbt is not installed", where=sys.executable, remedy="install mlops_assets with its dependencies."
        )
    return [found]
