"""Which code, libraries and machine made a result.

What belongs here: facts that name an environment well enough to make a result again. What does not: what they are
written into.
"""

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def code_version(package: str, *modules: str) -> str:
    """Return a hash of the modules of a system that an asset's result depends on, with their private parts.

    The private parts of a module ``x`` are called ``_x_….py``.
    """
    folder = _PACKAGE / package
    paths = [path for module in modules for path in (folder / f"{module}.py", *sorted(folder.glob(f"_{module}_*.py")))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


@cache
def package_sha256() -> str:
    """Return the hash of every source file of this package as it is installed."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def environment_sha256() -> str:
    """Return the hash of the names and versions of everything installed: what a lock file promises, as it is here."""
    installed = {(str(each.metadata["Name"]).lower(), each.version) for each in metadata.distributions()}
    return hashlib.sha256(repr(sorted(installed)).encode()).hexdigest()


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with ``+changes`` where it differs; or None.

    A package that is installed within somebody else's checkout is no part of it.
    """
    try:
        told = [
            subprocess.run(  # noqa: S603 - nothing of it comes from outside
                ["git", "-C", str(_PACKAGE), *command],  # noqa: S607 - git is found on the path
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", str(_PACKAGE)],
                ["ls-files", "--error-unmatch", "--", str(_PACKAGE / "__init__.py")],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[0] + ("+changes" if told[1] else "")


def facts(*libraries: str) -> dict[str, str | None]:
    """Return code, commit, Python and the versions of the libraries that a result depends on."""
    return {
        "package_sha256": package_sha256(),
        "git_commit": git_commit(),
        "environment_sha256": environment_sha256(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in libraries},
    }
