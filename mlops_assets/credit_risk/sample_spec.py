"""The spec of the sample loan book: what the code location runs when nobody has written a spec.

What belongs here: the sample world's features, their meaning, the sentences of its reasons, and its protected
attributes. What does not: the settings themselves (`spec.py`) and how the world is made (`samples/lending.py`).
"""

from typing import Any

from mlops_assets.credit_risk.spec import Spec

NUMERIC: tuple[dict[str, Any], ...] = (
    {
        "name": "annual_income", "theme": "income", "label": "gross annual income",
        "low": 9_600, "high": 600_000, "risk": "falls", "nullable": False,
    },
    {
        "name": "loan_amount", "theme": "amount", "label": "amount applied for",
        "low": 1_000, "high": 50_000, "risk": "rises", "nullable": False,
    },
    {
        "name": "term_months", "theme": "term", "label": "term in months",
        "low": 12, "high": 60, "risk": "rises", "nullable": False,
    },
    {
        "name": "employment_years", "theme": "employment", "label": "years in the present job",
        "low": 0, "high": 50, "risk": "falls",
    },
    {
        "name": "revolving_utilisation", "theme": "utilisation", "label": "share of the credit lines in use",
        "low": 0, "high": 1.5, "risk": "rises",
    },
    {"name": "open_accounts", "theme": "accounts", "label": "open credit accounts", "low": 0, "high": 40},
    {
        "name": "delinquencies_2y", "theme": "payment_history", "label": "late payments in two years",
        "low": 0, "high": 20, "risk": "rises",
    },
    {
        "name": "inquiries_6m", "theme": "inquiries", "label": "credit inquiries in six months",
        "low": 0, "high": 20, "risk": "rises",
    },
    {
        "name": "months_since_delinquency", "theme": "payment_history", "label": "months since the last late payment",
        "low": 0, "high": 120, "risk": "falls",
        "special": {-7: "never late", -8: "not usable", -9: "no bureau file"},
    },
    {
        "name": "credit_history_months", "theme": "credit_history", "label": "age of the oldest account in months",
        "low": 0, "high": 720, "risk": "falls",
    },
    {
        "name": "debt_to_income", "theme": "debts", "label": "monthly payments over monthly income",
        "low": 0, "high": 2, "risk": "rises",
    },
)  # fmt: skip

CATEGORICAL: tuple[dict[str, Any], ...] = (
    {
        "name": "purpose", "theme": "purpose", "label": "purpose of the loan",
        "levels": ["debt_consolidation", "car", "home_improvement", "education", "medical", "small_business", "other"],
    },
    {
        "name": "home_ownership", "theme": "housing", "label": "housing situation",
        "levels": ["own", "mortgage", "rent", "with_family"],
    },
    {
        "name": "employment_type", "theme": "employment_type", "label": "kind of employment",
        "levels": ["permanent", "fixed_term", "self_employed", "retired", "unemployed"],
    },
    {
        "name": "region", "theme": "region", "label": "region of residence",
        "levels": ["north", "north_east", "east", "south_east", "south", "south_west", "west", "capital"],
    },
)  # fmt: skip

# A reason is told where its feature raised the risk against the average applicant, whatever its value is. So each
# sentence names one thing and says what it was compared with: that is true of everybody to whom it is told.
THEMES: dict[str, dict[str, str]] = {
    "income": {"sentence": "Your income, compared with that of other applicants."},
    "amount": {"sentence": "The amount that you apply for, compared with other applications."},
    "term": {"sentence": "The term that you apply for, compared with other applications."},
    "employment": {
        "sentence": "The time in your present job, compared with other applicants.",
        "when_missing": "We could not establish how long you have been in your present job.",
    },
    "employment_type": {"sentence": "Your kind of employment, compared with that of other applicants."},
    "utilisation": {
        "sentence": "The share of your credit lines that is in use, compared with other applicants.",
        "when_missing": "There is no credit line whose use we could assess.",
    },
    "accounts": {"sentence": "The number of your open credit accounts, compared with other applicants."},
    "payment_history": {
        "sentence": "The record of your payments on existing and earlier credits, compared with other applicants.",
        "when_missing": "The credit bureau has no record of late payments of yours that we could assess.",
    },
    "inquiries": {
        "sentence": "The number of credit inquiries about you in the last six months, compared with other applicants.",
    },
    "credit_history": {"sentence": "The age of your oldest credit account, compared with other applicants."},
    "debts": {"sentence": "Your monthly payments as a share of your income, compared with other applicants."},
    "purpose": {"sentence": "The purpose that you name, compared with other applications."},
    "housing": {"sentence": "Your housing situation, compared with that of other applicants."},
    "region": {"sentence": "The region where you live, compared with other regions."},
}

SETTINGS: dict[str, Any] = {
    "data": {"applications": {"kind": "sample"}},
    "numeric": NUMERIC,
    "categorical": CATEGORICAL,
    "protected": [{"name": "sex"}, {"name": "age", "edges": [26, 60], "low": 16, "high": 120}, {"name": "origin"}],
    # No single range finds a loan in cents with an income in cents; a thousandfold of the other one does not exist.
    "ratios": [{"numerator": "annual_income", "denominator": "loan_amount", "low": 0.1, "high": 1_000}],
    "segments": ["purpose", "home_ownership"],
    "themes": THEMES,
    "policy": {"insufficient": ["revolving_utilisation", "months_since_delinquency"]},
    # Training on a resample alone flips a tenth of the decisions here: the cut lies where most applications are.
    "gates": {"swap_share": 0.15},
}
"""The settings as a YAML file would hold them."""


def default_spec() -> Spec:
    """Return the spec of the sample loan book, the default system ``credit_risk``."""
    return Spec.model_validate(SETTINGS)
