"""A lease on a folder: one process at a time, and never a deadlock after a crash.

What belongs here: who holds a job, whether that process still lives, taking over from a dead one. What does not:
what the holder does with the job.

A holder is a file `lease.<generation>.json`, made exclusively; the highest generation holds. Taking over means making
the next generation, which only one process can. Nothing is locked, so nothing stays locked.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from mlops_assets.foundation import files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import AnyPath

_NAME = re.compile(r"lease\.(\d+)\.json")
_ours: set[str] = set()


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _machine() -> str:
    # Two containers may share a host name; a process id only means something in its own boot and namespace.
    namespace = "/proc/self/ns/pid"
    inside = os.readlink(namespace) if Path(namespace).is_symlink() else ""  # noqa: PTH115 - its target is no path
    return "/".join([socket.gethostname(), _text_of("/proc/sys/kernel/random/boot_id"), inside])


def _start_of(pid: int) -> str:
    """Return the state and the start time of a process in clock ticks, where the system tells them (Linux)."""
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 else "dead" if fields[0] in "ZX" else fields[19]


def _is_alive(pid: int, started: str) -> bool:
    if os.name != "posix":  # signal 0 would be delivered there; the heartbeat decides instead
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # The same number may by now be another process.
    return not started or _start_of(pid) == started


class Lease:
    """Hold ``folder`` for one run; use it as a context manager.

    Parameters
    ----------
    folder
        Where the lease files lie, local or on an object store.
    run_id
        Who asks; told to whoever comes second.
    stale_after
        Seconds without a heartbeat after which a holder on another machine counts as dead. A holder on this machine
        is dead as soon as its process is.

    Raises
    ------
    UserError
        On entering: somebody else holds it; the text says who, where and since when.
    """

    def __init__(self, folder: AnyPath, run_id: str, stale_after: float = 120.0) -> None:
        self._folder, self._run_id, self._stale_after = folder, run_id, stale_after
        self._token = uuid.uuid4().hex
        self._generation = 0
        self._since = ""
        self._lost = False
        self._beaten = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{run_id}", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        _ours.discard(self._token)
        if self._lost:
            return
        try:
            files.write_atomic(self._path(self._generation), self._record(released=True))
        except UserError:  # a full disk can still give a file back
            with contextlib.suppress(OSError):
                self._path(self._generation).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `UserError` if another run has taken over, as it may after this one slept for too long."""
        if not self._lost and time.monotonic() - self._beaten > self._stale_after / 2:
            self._refresh()
        if self._lost:
            raise UserError(
                f"another run has taken over from run {self._run_id}, silent for more than {self._stale_after:g} s",
                where=str(self._folder),
                remedy="let the other run finish; what this one finished is kept and used by it.",
            )

    def _path(self, generation: int) -> AnyPath:
        return self._folder / f"lease.{generation}.json"

    def _record(self, *, released: bool = False) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._since = self._since or now
        return files.canonical_json(
            {
                "run_id": self._run_id,
                "host": socket.gethostname(),
                "machine": _machine(),
                "pid": os.getpid(),
                "started": _start_of(os.getpid()),
                "token": self._token,
                "since": self._since,
                "heartbeat": now,
                "released": released,
            }
        )

    def _generations(self) -> list[int]:
        return sorted(int(found[1]) for name in files.names_in(self._folder) if (found := _NAME.fullmatch(name)))

    def _acquire(self) -> None:
        while True:
            known = self._generations()
            latest = known[-1] if known else 0
            if latest:
                self._refuse_if_held(latest)
            _ours.add(self._token)
            mine = latest + 1
            # A slow look may have missed generations that came and were tidied away: look again before believing it.
            if files.create(self._path(mine), self._record()) and self._generations()[-1:] == [mine]:
                break
            _ours.discard(self._token)
        self._generation, self._beaten = mine, time.monotonic()
        for old in known:
            with contextlib.suppress(OSError):
                self._path(old).unlink(missing_ok=True)

    def _refuse_if_held(self, generation: int) -> None:
        try:
            holder = json.loads(files.read_bytes(self._path(generation)))
        except FileNotFoundError:  # tidied away since: the caller's next look finds its successor
            return
        except ValueError:  # written whole or not at all, so this was damaged from outside and holds nothing
            return
        if self._is_over(holder):
            return
        raise UserError(
            f"run {holder['run_id']} holds this job since {holder['since']} (process {holder['pid']} on "
            f"{holder['host']}, last sign of life {holder['heartbeat']})",
            where=str(self._path(generation)),
            remedy=f"wait for it or end it; {self._stale_after:g} s after its last sign of life it may be taken over.",
        )

    def _is_over(self, holder: dict[str, Any]) -> bool:
        if holder["released"]:
            return True
        if holder["machine"] == _machine():
            if holder["pid"] == os.getpid() and holder["token"] not in _ours:
                return True
            if not _is_alive(holder["pid"], holder["started"]):
                return True
        # A heartbeat from the future is a clock gone wrong, not a reason to wait for it.
        age = abs(datetime.now(UTC) - datetime.fromisoformat(holder["heartbeat"]))
        return age > timedelta(seconds=self._stale_after)

    def _refresh(self) -> None:
        known = self._generations()
        if not known or known[-1] != self._generation:
            self._lost = True
            return
        files.write_atomic(self._path(self._generation), self._record())
        self._beaten = time.monotonic()

    def _beat(self) -> None:
        while not self._lost and not self._stop.wait(self._stale_after / 6):
            # A failed beat is no news: the next one may work, and `check` judges by the age of the last good one.
            with contextlib.suppress(Exception):
                self._refresh()
