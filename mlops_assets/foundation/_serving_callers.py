"""Who asks, and how often they may.

What belongs here: tokens and their comparison, token buckets, what a loopback address is. What does not: HTTP.
"""

import hmac
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256

from mlops_assets.foundation.errors import UserError

LOCAL = "local"
"""The name of whoever asks a service that has no tokens, which answers this machine only."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_MIN_TOKEN = 24
_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Tokens:
    """The callers of a service by their tokens, of which only hashes are kept.

    Parameters
    ----------
    pairs
        Names and tokens. A name may have several tokens, so that one can be replaced without a gap.
    where
        Where they come from, for messages.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], *, where: str = "tokens") -> None:
        self._names: dict[bytes, str] = {}
        for name, token in pairs:
            self._add(name, token, where)

    @classmethod
    def from_environment(cls, variable: str, environment: Mapping[str, str]) -> "Tokens":
        """Read ``name=token`` pairs, separated by commas or white space; none if the variable is unset or empty.

        Raises
        ------
        UserError
            A pair that is none, a name that cannot be one, a token that is short or belongs to two names.
        """
        pairs = []
        for number, pair in enumerate(re.split(r"[,\s]+", environment.get(variable, "").strip(", \t\r\n")), start=1):
            name, separator, token = pair.partition("=")
            if not pair:
                continue
            if not separator:
                # The text may be a token without a name: it is not repeated.
                raise UserError(f"entry {number} has no name", where=variable, remedy="write name=token,name=token.")
            pairs.append((name, token))
        return cls(pairs, where=variable)

    def _add(self, name: str, token: str, where: str) -> None:
        if not _NAME.fullmatch(name):
            raise UserError(
                "a caller's name has to be lower-case letters, digits, dots, dashes and underscores",
                where=where,
                remedy="write name=token.",
            )
        if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise UserError(
                f"the token of {name} is shorter than {_MIN_TOKEN} characters, or not plain ASCII",
                where=where,
                remedy=f"make one with {_MAKE}.",
            )
        digest = sha256(token.encode()).digest()
        if self._names.setdefault(digest, name) != name:
            raise UserError(
                f"{self._names[digest]} and {name} have the same token", where=where, remedy="give each its own."
            )

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Tokens of {', '.join(sorted(set(self._names.values()))) or 'nobody'}"

    def caller(self, authorization: str) -> str | None:
        """Return whose token an ``Authorization`` header bears, or None.

        Every token is compared with, in a time that does not depend on how much of it is right.
        """
        scheme, _, token = authorization.partition(" ")
        digest = sha256(token.strip(" ").encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


class TokenBuckets:
    """How many requests a client may still make: a bucket of ``burst`` that fills at ``rate`` a second.

    Memory is bounded: of at most ``clients`` clients a bucket is kept. A bucket that is full again is as good as none
    and makes place; while all are in use, whoever is new shares one bucket with all others who are.
    """

    def __init__(self, rate: float, burst: int, clients: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clients, self._clock = rate, float(burst), clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._overflow = (self._burst, clock())

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str) -> int:
        """Take one request from a client's bucket; returns 0, or the whole seconds to wait for the next."""
        now = self._clock()
        known = self._buckets.get(client)
        if known is None and not self._has_place(now):
            self._overflow, wait = self._taken(self._overflow, now)
            return wait
        self._buckets[client], wait = self._taken(known or (self._burst, now), now)
        self._buckets.move_to_end(client)
        return wait

    def _level(self, bucket: tuple[float, float], now: float) -> float:
        level, at = bucket
        return min(self._burst, level + (now - at) * self._rate)

    def _taken(self, bucket: tuple[float, float], now: float) -> tuple[tuple[float, float], int]:
        level = self._level(bucket, now)
        if level >= 1.0:
            return (level - 1.0, now), 0
        return (level, now), max(1, math.ceil((1.0 - level) / self._rate))

    def _has_place(self, now: float) -> bool:
        # The one that was used longest ago comes first; if that one is not full again, it still counts.
        while len(self._buckets) >= self._clients:
            oldest = next(iter(self._buckets))
            if self._level(self._buckets[oldest], now) < self._burst:
                return False
            del self._buckets[oldest]
        return True


def is_loopback(host: str) -> bool:
    """Tell whether an address or host name is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def network_of(client: str) -> str:
    """Return what one client is for a limit: an IPv4 address, or an IPv6 network of 64 bits, which one client owns."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return client
