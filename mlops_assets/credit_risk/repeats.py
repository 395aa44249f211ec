"""Whether an application says what one that was decided on said, in whatever notation either came.

What belongs here: the comparison of raw rows by their typed content. What does not: who asks, and what becomes of the
answer (`decision_batch.py`, `_api_decisions.py`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd

from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.spec import Spec


def same_content(
    spec: Spec, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], until: datetime
) -> list[bool]:
    """Tell of each raw row whether the decision beside it was made on the same content.

    Rows that break the contract are the same only word for word: what cannot be read has no other notation.

    Parameters
    ----------
    pairs
        A raw row, and the body of a decision.
    until
        No application may be later than this.
    """
    told = [_sides(sent, record) for sent, record in pairs]
    same = [all(sent.get(name) == stored.get(name) for name in {*sent, *stored}) for sent, stored in told]
    unlike = [at for at, equal in enumerate(same) if not equal]
    if not unlike:
        return same
    rows: list[dict[str, Any]] = []
    for at in unlike:
        received = pairs[at][1]["received_at"]
        for side, row in enumerate(told[at]):
            applied = row.get("applied_at") or received
            rows.append(
                {**dict.fromkeys(told[at][0]), **row, "applied_at": applied, "application_id": str(2 * at + side)}
            )
    contract = applications_contract(spec, until)
    split = contract.split(pd.DataFrame(rows, dtype=object), where="applications and their decisions")
    typed = split.accepted.astype(object).set_index("application_id")
    for at in unlike:
        names = [str(2 * at), str(2 * at + 1)]
        if all(name in typed.index for name in names):
            one, other = (typed.loc[name] for name in names)
            same[at] = bool(((one == other) | (one.isna() & other.isna())).all())
    return same


def _sides(sent: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    row, stored = dict(sent), dict(record["payload"])
    if row.get("applied_at") is None and stored.get("applied_at") == record["received_at"]:
        # The moment of the first request stood in for a time that neither request names.
        stored["applied_at"] = None
    # What was asked for the application stands for itself: blanks around an id are no other id.
    row["application_id"] = stored["application_id"] = record["application_id"]
    return row, stored
