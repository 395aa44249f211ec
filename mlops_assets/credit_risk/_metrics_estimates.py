"""What every metric of credit risk is made of: an estimate with its interval, or the reason why there is none.

What belongs here: the estimate, how few rows are too few, how an estimate is held against a bound, and shares. What
does not: the bootstrap (`_metrics_sampling.py`) and any particular metric.
"""

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, Self

Verdict = Literal["passed", "failed", "not_assessed"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and the rows it rests on; or no number at all, and why.

    Parameters
    ----------
    value, low, high
        The estimate and the bounds of its interval; all three None where nothing could be assessed.
    n
        Rows that the estimate rests on, or that were too few for one.
    status
        ``"assessed"`` or ``"not_assessed"``. There is no number that stands for "unknown".
    reason
        Why it was not assessed; on an assessed one, a remark that a reader should know.

    Raises
    ------
    ValueError
        A number without status or a status without number: a programming error.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    status: Literal["assessed", "not_assessed"] = "assessed"
    reason: str = ""

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        if self.status == "assessed":
            if any(number is None or not isfinite(number) for number in numbers):
                raise ValueError(f"an assessed estimate needs three finite numbers, not {numbers}")
            if numbers[1] > numbers[2]:  # type: ignore[operator]
                raise ValueError(f"an interval from {self.low} to {self.high} is empty")
        elif any(number is not None for number in numbers) or not self.reason:
            raise ValueError("what was not assessed has a reason and no number")

    @classmethod
    def unknown(cls, n: int, reason: str) -> Self:
        """Make the estimate of something that could not be assessed."""
        return cls(None, None, None, n, "not_assessed", reason)

    @property
    def assessed(self) -> bool:
        """Whether there is a number."""
        return self.status == "assessed"

    def number(self) -> tuple[float, float, float]:
        """Return value, low and high; NaN for each where nothing was assessed, for tables alone."""
        if self.value is None or self.low is None or self.high is None:
            return (float("nan"),) * 3
        return self.value, self.low, self.high

    def as_row(self) -> dict[str, Any]:
        """Return plain values, for evidence and tables."""
        return asdict(self)


@dataclass(frozen=True)
class Judged:
    """An estimate held against a bound, and the sentence that says how it came out."""

    status: Verdict
    bound: float
    reason: str


def at_least(estimate: Estimate, bound: float) -> Judged:
    """Hold an estimate against a lower bound; see `judged`."""
    return judged(estimate, bound, above=True)


def at_most(estimate: Estimate, bound: float) -> Judged:
    """Hold an estimate against an upper bound; see `judged`."""
    return judged(estimate, bound, above=False)


def judged(estimate: Estimate, bound: float, *, above: bool) -> Judged:
    """Hold an estimate against a bound: the estimate itself decides, its interval is the remark.

    A bound on credit decisions is a promise about what is done to people. Letting an interval that reaches the bound
    pass would reward small samples: the fewer the rows, the more would pass. So the point estimate has to meet the
    bound, however wide its interval, and a verdict that chance could have turned says so. "Not assessed" is kept for
    what could not be measured, and is no pass either.

    Parameters
    ----------
    above
        True where the estimate must be at least ``bound``, False where it must be at most that.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return Judged("not_assessed", bound, estimate.reason)
    met = estimate.value >= bound if above else estimate.value <= bound
    wanted = "at least" if above else "at most"
    reason = f"{estimate.value:.4g}, {wanted} {bound:.4g} is asked"
    if estimate.low < bound < estimate.high:
        reason += f"; by chance it could be the other way, the interval is {estimate.low:.4g} to {estimate.high:.4g}"
    return Judged("passed" if met else "failed", bound, reason)


@dataclass(frozen=True)
class Minimum:
    """How many rows, bads and goods a metric needs before it is a number.

    The defaults are those under which a group's error rates have a standard error of about a tenth at worst.
    """

    rows: int = 100
    bads: int = 20
    goods: int = 20

    def lacking(self, rows: int, bads: int, goods: int) -> str | None:
        """Say what is too few, or None."""
        if rows == 0:
            return "there are no rows"
        counted = f"{rows:,} rows with {bads:,} bads and {goods:,} goods"
        if rows < self.rows or bads < self.bads or goods < self.goods:
            return f"{counted}; needed are {self.rows:,} rows, {self.bads:,} bads and {self.goods:,} goods"
        return None

    def lacking_rank(self, rows: int, bads: int, goods: int) -> str | None:
        """Say what is too few for a metric of order, which no setting can lower below two of each class."""
        least = Minimum(self.rows, max(self.bads, 2), max(self.goods, 2))
        return least.lacking(rows, bads, goods)


@dataclass(frozen=True)
class Terms:
    """On what terms a metric is assessed.

    Parameters
    ----------
    minimum
        What it needs to be a number.
    level
        Probability of its interval.
    draws, seed
        Samples of a bootstrap, and the seed that makes them the same every time.
    """

    minimum: Minimum = Minimum()
    level: float = 0.95
    draws: int = 400
    seed: int = 0


TERMS = Terms()


def proportion(count: int, n: int, *, least: int = 1, level: float = TERMS.level) -> Estimate:
    """Share of ``count`` in ``n`` with its Jeffreys interval, 0..1.

    The interval holds the middle of Beta(count + 1/2, n - count + 1/2); its lower bound is 0 where nothing was
    counted and its upper bound 1 where everything was (Brown, Cai and DasGupta 2001, section 4.1.2).

    Parameters
    ----------
    least
        Fewer rows than these are not assessed.
    """
    if n < max(least, 1):
        return Estimate.unknown(n, f"{n:,} rows; needed are {max(least, 1):,}" if n else "there are no rows")
    low, high = jeffreys_interval(count, n, level)
    return Estimate(count / n, low, high, n)


def jeffreys_interval(count: int, n: int, level: float = TERMS.level) -> tuple[float, float]:
    """Return the bounds of the Jeffreys interval of a share; see `proportion`."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    a, b = count + 0.5, n - count + 0.5
    low = 0.0 if count == 0 else float(betaincinv(a, b, tail))
    high = 1.0 if count == n else float(betaincinv(a, b, 1 - tail))
    return low, high


def z_score(level: float = TERMS.level) -> float:
    """Return the half width of a normal interval of this level, in standard errors."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))
