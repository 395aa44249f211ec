"""The fixtures that several modules of these tests share."""

from tests.credit_risk.decided_world import built, copied, copy_of, lender

__all__ = ["built", "copied", "copy_of", "lender"]
