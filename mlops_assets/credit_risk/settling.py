"""Settling a data incident: what a person decided, and what it means for the batch.

What belongs here: the one step that changes both the journal and the batch. What does not: what an incident is
(`incidents.py`) and what batches are (`batches.py`).
"""

from mlops_assets.credit_risk import incidents
from mlops_assets.credit_risk.batches import set_batch_status
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.resources import Warehouse


def settle(
    spec: Spec, operations: Journal, warehouse: Warehouse, incident: str, *, by: str, reason: str, outcome: str
) -> str:
    """Close an incident with a reason; a waived batch counts once none of its incidents is open any more.

    Parameters
    ----------
    outcome
        ``waived``: the batch is right as it is, and counts; ``resolved``: it stays blocked, another delivery replaces
        it.

    Raises
    ------
    UserError
        There is no such open incident, the outcome is neither, name or reason is empty, or the warehouse cannot be
        opened.
    """
    if outcome != "waived":
        closed = incidents.acknowledge(operations, incident, by=by, reason=reason, outcome=outcome)
        waits = "" if closed.batch_id is None else ": its batch stays blocked until another delivery replaces it"
        return f"{closed.id} is {outcome} by {by}{waits}."
    # The warehouse first: an incident that is closed while its batch cannot be let through would be closed for nothing.
    with warehouse.session() as tables:
        closed = incidents.acknowledge(operations, incident, by=by, reason=reason, outcome=outcome)
        if closed.batch_id is None:
            return f"{closed.id} is waived by {by}."
        of_batch = [each for each in incidents.history(operations) if each.batch_id == closed.batch_id]
        still = [each.id for each in of_batch if each.state == "open"]
        if still:
            return f"{closed.id} is waived by {by}; the batch still waits for {', '.join(still)}."
        if any(each.state == "resolved" for each in of_batch):
            return f"{closed.id} is waived by {by}; the batch stays blocked, as another of its incidents was resolved."
        set_batch_status(tables, spec, closed.batch_id, "accepted")
    return f"{closed.id} is waived by {by}: batch {closed.batch_id} counts as it is."
