"""The model that a service answers with, exchanged while it answers.

What belongs here: holding one model, asking whether another one is current, loading that one beside it, exchanging the
two. What does not: where models come from, and HTTP.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar

from mlops_assets.foundation._serving_errors import unavailable
from mlops_assets.foundation.errors import UserError

T = TypeVar("T")
Outcome = Literal["unchanged", "loaded", "swapped", "absent", "failed"]

_log = logging.getLogger("mlops_assets.service")
_MAX_BACKOFF = 8


@dataclass(frozen=True)
class ModelIdentity:
    """Which model: two are the same if version and SHA-256 are; ``since`` is when it became current."""

    version: str
    sha256: str
    since: datetime | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"version {self.version} ({self.sha256[:12]})"


@dataclass(frozen=True)
class Held(Generic[T]):
    """A model in memory: whoever took it answers with it to the end, whatever is loaded meanwhile."""

    identity: ModelIdentity
    model: T
    loaded_at: datetime


@dataclass(frozen=True)
class HolderStatus:
    """What a holder did so far; ``error`` is what the last attempt failed with, None after one that did not."""

    identity: ModelIdentity | None = None
    loaded_at: datetime | None = None
    checked_at: datetime | None = None
    swaps: int = 0
    failures: int = 0
    error: str | None = None


class ModelHolder(Generic[T]):
    """One model for all requests, exchanged without a restart and without a request that sees two.

    Parameters
    ----------
    name
        What the model is called in messages and metrics, such as ``champion``.
    identify
        Returns which model is current, cheaply; None where there is none yet.
    load
        Loads exactly that model, and tries it out: what raises here never answers a request.
    poll_seconds
        How often ``identify`` is asked once `start` was called; after failures up to eight times as long.

    Notes
    -----
    A fault of ``identify`` or ``load`` keeps the model that is held. It is logged, counted, and stands in `status`
    until an attempt succeeds.
    """

    def __init__(
        self,
        name: str,
        identify: Callable[[], ModelIdentity | None],
        load: Callable[[ModelIdentity], T],
        *,
        poll_seconds: float = 10.0,
    ) -> None:
        self.name, self.poll_seconds = name, poll_seconds
        self._identify, self._load = identify, load
        # Each is replaced as a whole and read once, so that a reader needs no lock.
        self._held: Held[T] | None = None
        self._status = HolderStatus()
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_a_row = 0

    def get(self) -> Held[T]:
        """Return the model that is held. A request takes it once and uses nothing else.

        Raises
        ------
        Refused
            Status 503: none was loaded yet.
        """
        held = self._held
        if held is None:
            raise unavailable("no_model", f"No {self.name} model is loaded yet.")
        return held

    def status(self) -> HolderStatus:
        """Return what happened so far."""
        return self._status

    def refresh(self) -> Outcome:
        """Ask which model is current and load it if it is another one; one caller at a time, the others wait."""
        with self._one_at_a_time:
            outcome = self._refreshed()
            self._in_a_row = self._in_a_row + 1 if outcome == "failed" else 0
            return outcome

    def start(self) -> None:
        """Poll in a thread of its own from now on, beginning at once."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._poll, name=f"poll-{self.name}", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Poll no more; an attempt that is under way is waited for no longer than ``timeout`` seconds."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)

    def _poll(self) -> None:
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(self.poll_seconds * min(2**self._in_a_row, _MAX_BACKOFF))

    def _refreshed(self) -> Outcome:
        wanted: ModelIdentity | None = None
        held = self._held
        try:
            wanted = self._identify()
            if wanted is None and held is not None:
                return self._failed("no model is named as current any more", None)
            if wanted is None or (held is not None and wanted == held.identity):
                self._status = replace(self._status, checked_at=datetime.now(UTC), error=None)
                return "absent" if wanted is None else "unchanged"
            model = self._load(wanted)
        except Exception as error:  # noqa: BLE001 - whatever a model does when it is loaded, the old one keeps answering
            return self._failed(_told(error, wanted), error)
        return self._exchanged(Held(wanted, model, datetime.now(UTC)), held)

    def _exchanged(self, new: Held[T], old: Held[T] | None) -> Outcome:
        self._held = new
        self._status = replace(
            self._status,
            identity=new.identity,
            loaded_at=new.loaded_at,
            checked_at=new.loaded_at,
            swaps=self._status.swaps + (old is not None),
            error=None,
        )
        before = f" in place of {old.identity}" if old else ""
        _log.info("%s: %s answers now%s", self.name, new.identity, before, extra={"fields": {"event": "model"}})
        return "swapped" if old else "loaded"

    def _failed(self, message: str, error: Exception | None) -> Outcome:
        again = self._status.error == message
        self._status = replace(
            self._status, checked_at=datetime.now(UTC), failures=self._status.failures + 1, error=message
        )
        keeps = f"{self._held.identity} keeps answering" if self._held else "there is none to answer with"
        # The same fault every ten seconds would drown the log.
        level = logging.DEBUG if again else logging.ERROR
        trace = error if error is not None and not isinstance(error, UserError) else None
        _log.log(level, "%s: %s; %s", self.name, message, keeps, exc_info=trace, extra={"fields": {"event": "model"}})
        return "failed"


def _told(error: Exception, wanted: ModelIdentity | None) -> str:
    what = f"cannot load {wanted}" if wanted else "cannot ask which model is current"
    return f"{what}: {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}"
