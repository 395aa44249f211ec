"""What a user may configure about a credit model, in one YAML file.

What belongs here: names, meanings, bounds and defaults of the settings, and what contradicts itself in them. What does
not: reading data or anything that acts on a setting.
"""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlops_assets.foundation import specs
from mlops_assets.foundation.drift import DriftBounds
from mlops_assets.foundation.risk import RiskProfile
from mlops_assets.foundation.sources import FilesSource, SampleSource, Source
from mlops_assets.foundation.specs import Block

RESERVED = frozenset(
    {
        "application_id", "applicant_id", "applied_at", "outcome", "outcome_at", "bad", "period", "source", "row",
        "batch_id", "payload_sha256", "code_list_version", "nr",
    }
)  # fmt: skip
"""Columns of the system's tables that no feature and no protected attribute can be named like."""

_UNNAMEABLE = frozenset('"\n\r\t\0')

UNTHEMED = "without a theme, a reason that names it cannot be told"


class Periods(specs.Periods):
    """The rhythm of the system: one partition is one batch of applications."""

    start: date = Field(date(2023, 9, 1), description="First day of the first period.")
    hour: int = Field(5, ge=0, le=23, description="Hour of the day at which the schedule runs.")


class Data(Block):
    """Where applications, outcomes and protected attributes come from."""

    applications: Source = Field(
        default_factory=SampleSource,
        description="One row an application. `{period}` in a path stands for the period's first day.",
    )
    outcomes: Source | None = Field(
        None, description="What became of the loans; when absent, a column of the applications, or of the sample world."
    )
    protected: Source | None = Field(
        None, description="Protected attributes by application; when absent, columns of the applications."
    )
    timed: bool = Field(default=True, description="False when applications carry no time: all are of one period.")
    numbered: bool = Field(
        default=False, description="True when applications carry no id: they are named by file and row."
    )
    code_list_version: str | None = Field(
        None,
        description="Version of the feed's code lists; rows that state another one are refused.",
    )


class Target(Block):
    """What counts as a bad loan, and when a loan is old enough to be judged."""

    bad: tuple[str, ...] = Field(("default",), min_length=1, description="Outcomes that are bad.")
    good: tuple[str, ...] = Field(("paid",), min_length=1, description="Outcomes that are good.")
    indeterminate: tuple[str, ...] = Field((), description="Outcomes that are neither: counted, never learned from.")
    maturity_days: int = Field(365, ge=0, description="Days after the application at which its outcome counts.")

    @model_validator(mode="after")
    def _no_outcome_is_two_things(self) -> "Target":
        every = [*self.bad, *self.good, *self.indeterminate]
        twice = sorted({value for value in every if every.count(value) > 1})
        if twice:
            raise ValueError(f"target: {', '.join(map(repr, twice))} is named more than once")
        return self


class Numeric(Block):
    """A number that the models may use."""

    name: str
    theme: str = Field(description="The reason theme that it belongs to.")
    label: str = Field("", description="Its name for people.")
    low: float | None = Field(None, description="Least possible value; a row below it is quarantined.")
    high: float | None = Field(None, description="Largest possible value; a row above it is quarantined.")
    special: dict[float, str] = Field(
        default_factory=dict, description="Codes that are no quantity, and what they mean."
    )
    risk: Literal["rises", "falls", "free"] = Field(
        "free", description="What the default probability does as the value rises; models are held to it."
    )
    nullable: bool = Field(default=True, description="Whether a value may be missing.")
    replace: dict[str, str] = Field(
        default_factory=dict, description="Texts of the source that stand for a value, such as {'n/a': '-9'}."
    )


class Categorical(Block):
    """A category that the models may use."""

    name: str
    theme: str = Field(description="The reason theme that it belongs to.")
    label: str = Field("", description="Its name for people.")
    levels: tuple[str, ...] = Field((), description="Known values; when empty, those of the training set.")
    nullable: bool = Field(default=True, description="Whether a value may be missing.")


class Protected(Block):
    """An attribute that must not decide; kept in a table of its own and read by the bias report alone."""

    name: str
    edges: tuple[float, ...] = Field((), description="Cuts of a number into groups, such as [25, 60] for an age.")
    low: float | None = Field(None, description="Least possible number; lower ones count as unknown.")
    high: float | None = Field(None, description="Largest possible number; higher ones count as unknown.")
    reference: str | None = Field(None, description="Group to compare with; by default the most approved.")


class Theme(Block):
    """What is said to an applicant when a theme raised the default probability."""

    sentence: str = Field(min_length=8, description="The reason in plain words.")
    when_missing: str | None = Field(
        None,
        description="Said instead when the theme's information is missing; `{missing}` in it stands for what is. "
        "By default: We have no information on {missing}.",
    )


class Ratio(Block):
    """Bounds on the ratio of two numbers of one application, which find unit errors that no single range can."""

    numerator: str
    denominator: str
    low: float | None = None
    high: float | None = None


class Training(Block):
    """What the models learn from."""

    history_periods: int = Field(1_500, ge=1, description="Periods of history that are learned from.")
    split: Literal["auto", "time", "stratified"] = Field(
        "auto", description="auto: by time where applications carry one, else stratified by outcome."
    )
    calibrate_share: float = Field(0.2, gt=0, lt=0.5, description="Share of matured loans to calibrate on.")
    test_share: float = Field(0.2, gt=0, lt=0.5, description="Share of matured loans, the last, to be judged on.")
    minimum_goods: int = Field(200, ge=2, description="Fewer good loans: nothing is trained.")
    minimum_bads: int = Field(50, ge=2, description="Fewer bad loans: nothing is trained.")
    conflict_share: float = Field(0.001, ge=0, le=1, description="Share of contradictions that blocks training.")
    seed: int = Field(7, ge=0)


class Scorecard(Block):
    """The weight-of-evidence scorecard."""

    max_bins: int = Field(6, ge=2, le=20, description="Bins of a feature, beside missing, special and out of range.")
    minimum_share: float = Field(0.04, gt=0, lt=0.5, description="Least share of the applications in a bin.")
    minimum_iv: float = Field(0.02, ge=0, description="Features of less information value are left out.")
    regularization: float = Field(1.0, gt=0, description="Inverse strength of the L2 penalty of the logistic model.")
    points_to_double: float = Field(20.0, gt=0, description="Points that double the odds of being good.")
    base_points: int = Field(600, description="Points at the base odds.")
    base_odds: float = Field(50.0, gt=0, description="Odds of good to bad at the base points.")


class Gbm(Block):
    """The monotone LightGBM challenger."""

    trees: int = Field(200, ge=10, le=5_000)
    learning_rate: float = Field(0.05, gt=0, le=1)
    leaves: int = Field(4, ge=2, le=255, description="Few: trees of pairs of features, which seldom overfit.")
    minimum_leaf: int = Field(40, ge=1, description="Least applications in a leaf.")
    subsample: float = Field(0.8, gt=0, le=1)
    columns: float = Field(0.8, gt=0, le=1, description="Share of the features that a tree sees.")
    l2: float = Field(5.0, ge=0)
    margin: float = Field(0.005, ge=0, description="AUC by which it must beat the scorecard to be proposed instead.")


class Policy(Block):
    """From a default probability to a decision; a versioned thing of its own, apart from the model."""

    loss_given_default: float = Field(0.6, gt=0, le=1, description="Share of the amount that a bad loan loses.")
    margin: float = Field(0.14, gt=0, le=1, description="Share of the amount that a good loan earns.")
    band: float = Field(0.04, ge=0, lt=1, description="Width in PD around the cut in which a human decides.")
    accept_below: float | None = Field(None, ge=0, le=1, description="PD below which is accepted; else from the costs.")
    reject_from: float | None = Field(None, ge=0, le=1, description="PD from which is rejected; else from the costs.")
    refer_outliers: bool = Field(default=True, description="Whether applications unlike any known go to a human.")
    refer_out_of_range: bool = Field(
        default=True, description="Whether values beyond all that the model was trained on go to a human."
    )
    refer_no_information: bool = Field(
        default=True, description="Whether a human decides where missing information alone would reject."
    )
    insufficient: tuple[str, ...] = Field(
        (), description="When all of these features are missing or special, the file is too thin: a human decides."
    )
    reasons: int = Field(4, ge=1, le=4, description="Most reasons that are told (Regulation B: more help nobody).")

    @model_validator(mode="after")
    def _cuts_in_order(self) -> "Policy":
        if (self.accept_below is None) != (self.reject_from is None):
            raise ValueError("policy: give both accept_below and reject_from, or neither")
        if self.accept_below is not None and self.reject_from is not None and self.accept_below > self.reject_from:
            raise ValueError(f"policy: accept_below {self.accept_below} lies above reject_from {self.reject_from}")
        return self


class Outliers(Block):
    """Applications unlike any in training, found by an isolation forest and flagged for review."""

    share: float = Field(0.005, gt=0, lt=0.2, description="Share of the training set beyond the bound.")
    trees: int = Field(100, ge=10, le=1_000)


class DataChecks(Block):
    """When a batch of applications is an incident."""

    quarantine_share: float = Field(0.05, ge=0, le=1, description="Share of quarantined rows above which it blocks.")
    systematic_share: float = Field(0.8, gt=0, le=1, description="Share of one rule in the quarantine, ")
    systematic_rows: int = Field(20, ge=2, description="from this many rows on, that means a systematic cause.")
    reference_periods: int = Field(28, ge=1, description="Earlier periods that a batch is compared with.")
    minimum_rows: float = Field(0.2, ge=0, description="Least rows, as a share of the usual number.")
    maximum_rows: float = Field(5.0, gt=0, description="Most rows, as a multiple of the usual number.")
    null_share: float = Field(0.1, gt=0, le=1, description="Rise of a column's share of missing values that blocks.")
    unknown_warn: float = Field(0.01, ge=0, le=1, description="Share of unknown categories that warns.")
    unknown_block: float = Field(0.05, ge=0, le=1, description="Share of unknown categories that blocks.")
    outcomes_lost: float = Field(
        0.1, ge=0, le=1, description="Share of a period's known outcomes that another delivery of it may lack."
    )
    minimum_batch: int = Field(20, ge=2, description="Smaller batches are pooled with the ones before for comparisons.")


class Gates(Block):
    """Bounds that a candidate must keep; each is judged with its interval on evidence stored with the version."""

    minimum_auc: float = Field(0.6, ge=0.5, lt=1, description="Least AUC out of time.")
    maximum_auc: float = Field(0.93, gt=0.5, le=1, description="AUC out of time that is too good to be true.")
    auc_loss: float = Field(0.005, ge=0, description="AUC that a candidate may lose against the champion.")
    minimum_ks: float = Field(0.15, ge=0, lt=1, description="Least Kolmogorov-Smirnov distance.")
    brier_rise: float = Field(0.02, ge=0, description="Relative rise of the Brier score against the champion.")
    calibration_error: float = Field(0.02, gt=0, description="Largest expected calibration error, beyond its noise.")
    grade_level: float = Field(0.01, gt=0, lt=0.5, description="Level of the Jeffreys test of all grades together.")
    segment_loss: float = Field(0.02, ge=0, description="AUC that a segment may lose against the champion.")
    approval_ratio: float = Field(0.8, gt=0, le=1, description="Least approval ratio of a protected group.")
    approval_drop: float = Field(0.02, ge=0, description="Fall of the approval ratio against the champion.")
    swap_share: float = Field(0.05, ge=0, le=1, description="Share of decisions that may flip without PD evidence.")
    shadow_psi: float = Field(0.1, gt=0, description="Score PSI between candidate and champion on live applications.")
    stability_loss: float = Field(0.05, ge=0, description="Loss of gini stability against the champion.")
    leakage_auc: float = Field(0.95, gt=0.5, le=1, description="AUC of a single feature that means leakage.")
    overfit_gap: float = Field(0.08, gt=0, description="AUC on training data above that out of time.")
    too_good: float = Field(0.03, gt=0, description="Gain in AUC over the champion that is too good to be true.")
    reason_stability: float = Field(0.6, ge=0, le=1, description="Same first reason after training on a resample.")
    minimum_group: int = Field(100, ge=1, description="Least applications of a group, ")
    minimum_group_outcomes: int = Field(20, ge=1, description="and least good and bad loans, to be assessed.")
    proxy_auc: float = Field(
        0.95, gt=0.5, le=1, description="AUC by which one feature alone may tell who is in a protected group."
    )
    waived_groups: dict[str, str] = Field(
        default_factory=dict,
        description="Protected attribute: why its bias report may stay not assessed, or its bound may be missed.",
    )
    proposal_days: float = Field(14.0, gt=0, description="Days after which a proposal expires.")

    @model_validator(mode="after")
    def _some_auc_passes(self) -> "Gates":
        if self.minimum_auc >= self.maximum_auc:
            raise ValueError(
                f"gates: minimum_auc {self.minimum_auc} leaves nothing below maximum_auc {self.maximum_auc}"
            )
        return self


class Monitoring(Block):
    """What is watched while the champion serves."""

    reference_periods: int = Field(180, ge=1, description="Periods before training's end that drift is measured from.")
    window_rows: int = Field(1_000, ge=100, description="Batches are pooled until they have this many rows.")
    bounds: DriftBounds = Field(default_factory=DriftBounds, description="When a difference counts as drift.")
    confirm: int = Field(2, ge=1, description="Windows in a row that confirm drift.")
    minimum_auc: float = Field(0.6, ge=0.5, lt=1, description="AUC on matured loans below which the model has decayed.")
    auc_fall: float = Field(0.05, gt=0, description="Fall in AUC against equally truncated test loans that is decay.")
    failed_grades: int = Field(2, ge=1, description="Grades with more bad loans than foreseen that are decay.")
    realised_rows: int = Field(500, ge=50, description="Matured decisions that realised performance needs.")
    realised_bads: int = Field(30, ge=5, description="And bad loans among them.")


class Retraining(Block):
    """When a new model is trained by itself, and what forbids it."""

    new_outcomes: int = Field(5_000, ge=1, description="New matured loans that are worth a training, ")
    new_bads: int = Field(300, ge=1, description="with at least so many bad ones.")
    maximum_age_days: float = Field(365.0, gt=0, description="Age of the champion's training data at which it is old.")
    cool_down_days: float = Field(7.0, ge=0, description="Days after an attempt before the next one.")
    budget: int = Field(2, ge=1, description="Attempts allowed ")
    budget_days: float = Field(30.0, gt=0, description="in this many days.")
    minimum_new_outcomes: int = Field(100, ge=1, description="With fewer new matured loans there is nothing to learn.")
    back_off_days: float = Field(7.0, gt=0, description="Days to wait after a rejected candidate; doubles each time.")


class Spec(Block):
    """One credit model."""

    system: Literal["credit_risk"] = "credit_risk"
    name: str = Field("credit_risk", description="Prefix of its asset keys and schema of its tables.")
    description: str = "Default probabilities with decisions, reasons and traces."
    risk: RiskProfile = Field(default_factory=lambda: RiskProfile(data="high", algorithm="high", output="high"))
    data: Data = Field(default_factory=Data)
    periods: Periods = Field(default_factory=Periods)
    target: Target = Field(default_factory=Target)
    numeric: tuple[Numeric, ...] = ()
    categorical: tuple[Categorical, ...] = ()
    protected: tuple[Protected, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    segments: tuple[str, ...] = Field((), description="Features whose values are reported one by one.")
    themes: dict[str, Theme] = Field(default_factory=dict, description="Reason texts by theme.")
    training: Training = Field(default_factory=Training)
    scorecard: Scorecard = Field(default_factory=Scorecard)
    gbm: Gbm = Field(default_factory=Gbm)
    policy: Policy = Field(default_factory=Policy)
    outliers: Outliers = Field(default_factory=Outliers)
    checks: DataChecks = Field(default_factory=DataChecks)
    gates: Gates = Field(default_factory=Gates)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    retraining: Retraining = Field(default_factory=Retraining)
    base: Path = Field(Path(), description="Folder that relative paths start from: the spec file's own.", exclude=True)

    @field_validator("name")
    @classmethod
    def _is_a_schema_name(cls, value: str) -> str:
        return specs.schema_name(value)

    @property
    def declared(self) -> tuple[Numeric | Categorical, ...]:
        """The features as they were declared, numbers first, in the order of the spec."""
        return (*self.numeric, *self.categorical)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the same order."""
        return tuple(feature.name for feature in self.declared)

    @property
    def protected_names(self) -> tuple[str, ...]:
        """Names of the protected attributes."""
        return tuple(attribute.name for attribute in self.protected)

    @model_validator(mode="after")
    def _names_fit_together(self) -> "Spec":
        names = [*self.features, *self.protected_names]
        # Tables know no case, and a name with a quotation mark would end there.
        folded = [name.casefold() for name in names]
        problems = [f"{name!r} is named twice" for name in sorted({name for name in folded if folded.count(name) > 1})]
        problems += [f"{name!r} is no name of a column" for name in names if not name.strip() or _UNNAMEABLE & {*name}]
        both = sorted({*self.features} & {*self.protected_names})
        problems += [f"{name!r} is protected and cannot be a feature" for name in both]
        problems += [f"{name!r} is a column of the system's own" for name in names if name.casefold() in RESERVED]
        if not self.features:
            problems.append("there is no feature: name some under `numeric:` or `categorical:`")
        problems += [
            f"feature {feature.name!r}: theme {feature.theme!r} has no sentence under `themes:`; {UNTHEMED}"
            for feature in self.declared
            if feature.theme not in self.themes
        ]
        numbers = {feature.name for feature in self.numeric}
        for ratio in self.ratios:
            unknown = [name for name in (ratio.numerator, ratio.denominator) if name not in numbers]
            problems += [f"ratio of {name!r}: it is no numeric feature" for name in unknown]
        for name in (*self.segments, *self.policy.insufficient):
            if name not in self.features:
                problems.append(f"segment or insufficient feature {name!r} is no feature")
        problems += [
            f"gates.waived_groups: {name!r} is no protected attribute"
            for name in self.gates.waived_groups
            if name not in self.protected_names
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _nothing_reads_what_is_protected(self) -> "Spec":
        """Refuse a protected attribute under another name: no table of its own could keep it out of the score."""
        sources = [_columns_of(each) for each in (self.data.applications, self.data.protected, self.data.outcomes)]
        everywhere = {name.casefold(): name for name in self.protected_names}
        for mapped in sources:
            everywhere |= {mapped[name].casefold(): name for name in self.protected_names if name in mapped}
        problems: list[str] = []
        for place, mapped in enumerate(sources):
            here = {mapped.get(name, name).casefold(): name for name in self.protected_names}
            own = () if place else (*self.features, "application_id", "applicant_id", "applied_at")
            for column in dict.fromkeys((*own, *mapped)):
                read = mapped.get(column, column)
                # What no block maps may be called as another file calls a protected attribute by chance.
                holds = (everywhere if column in mapped else here).get(read.casefold(), column)
                if column not in self.protected_names and holds != column:
                    problems.append(f"{column!r} reads {read!r}, which holds the protected attribute {holds!r}")
                elif column in self.protected_names and here[read.casefold()] != column:
                    problems.append(f"{column!r} reads {read!r}, as {here[read.casefold()]!r} does: both are protected")
        problems = list(dict.fromkeys(problems))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _data_can_be_read(self) -> "Spec":
        source = self.data.applications
        if isinstance(source, FilesSource) and self.data.timed is False and self.periods.end is not None:
            raise ValueError("periods.end has no meaning where data.timed is false: there is one period")
        return self


def _columns_of(source: Source | None) -> Mapping[str, str]:
    """Return canonical column: source column, where a source states it."""
    return {} if source is None or isinstance(source, SampleSource) else source.columns


def load_spec(path: Path) -> Spec:
    """Read one YAML file.

    Raises
    ------
    UserError
        The file is missing, is not YAML, or a setting is unknown or out of bounds; every such setting is named.
    """
    return parse_spec(specs.read_yaml(path), where=str(path), base=path.resolve().parent)


def parse_spec(raw: Mapping[str, object], *, where: str, base: Path) -> Spec:
    """Build a spec from plain values; errors list every wrong setting at once."""
    return specs.validated(Spec, raw, where=where, base=base)
