"""JSON that means one thing only: what the standard library lets through is refused here.

What belongs here: the strict reading of a request's body. What does not: what its fields may hold.

Python's reader takes NaN and Infinity, keeps the last of two equal keys, turns 1e999 into infinity, and spends seconds
on a million brackets. A decision must not rest on any of that.
"""

import json
import re
from typing import Any

from mlops_assets.foundation._serving_errors import Refused, shown

_MAX_NUMBER_CHARACTERS = 64
_INT64 = 1 << 63
# A string whole, or a bracket. The possessive loop takes an unclosed string to the end, so the scan stays linear.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def strict_json(data: bytes, *, max_depth: int) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    Refused
        Status 400: no UTF-8, no JSON, nested deeper than ``max_depth``, a key twice in one object, NaN or Infinity, a
        whole number past 64 bits, a number past the range of a double, half of a surrogate pair.
    """
    _check_depth(data, max_depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_int=_int64,
            parse_float=_finite,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _invalid("it holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg.lower()} at line {error.lineno}, column {error.colno}") from None
    return value


def _invalid(problem: str) -> Refused:
    return Refused(400, "invalid_json", f"The body is not the JSON that is asked for: {problem}.")


def _check_depth(data: bytes, max_depth: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(data):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
            if depth > max_depth:
                raise _invalid(f"it is nested deeper than {max_depth} levels")
        elif token in (b"}", b"]"):
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _invalid(f"the key {shown(twice)} stands twice in one object")
    return value


def _no_constant(name: str) -> Any:
    raise _invalid(f"{name} is no number; leave an unknown value out or send null")


def _int64(text: str) -> int:
    if len(text) > _MAX_NUMBER_CHARACTERS or not -_INT64 <= int(text) < _INT64:
        raise _invalid(f"the whole number {shown(text, 24)} does not fit in 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if len(text) > _MAX_NUMBER_CHARACTERS or value in (float("inf"), float("-inf")):
        raise _invalid(f"the number {shown(text, 24)} is too long, or past the range of a double")
    return value
