"""Drift of loan applications: alarms where there is none, power where there is, and unit errors beside them.

Run with ``python -m benchmarks.credit_drift [--batches 500] [--power 40]``. Everything is seeded. References have
10,000 rows; clean batches are drawn from the same day of the sample loan book, so that every alarm is false. Peers in
the same run: the population stability index alone (ten tenths, missing cells left out, alarm above 0.25 in any column),
and the tests of Kolmogorov-Smirnov and chi-square (alarm below p = 0.05 in any column).
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from mlops_assets.credit_risk.contracts import applications_contract
from mlops_assets.credit_risk.monitoring import Batch, DriftFinding, Window, drift_verdict, persists, pooled
from mlops_assets.credit_risk.sample_spec import default_spec
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.samples.lending import LendingWorld

SPEC = default_spec()
SCHEMA = FeatureSchema.of(SPEC)
REFERENCE_ROWS = 10_000
SIZES = (200, 1_000, 5_000)
SHIFTED = ("annual_income", "loan_amount", "employment_years", "credit_history_months", "debt_to_income")
SPECIAL = {each.name: list(each.special) for each in SCHEMA.features}

Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


@dataclass(frozen=True)
class Pools:
    """Applications of one day that references and batches are drawn from, with no row in both."""

    references: pd.DataFrame
    batches: pd.DataFrame

    @classmethod
    def of(cls, world: LendingWorld, rows: int = 300_000) -> "Pools":
        """Make pools of ``rows`` applications each."""
        frame = world.applications_frame(2 * rows)[list(SCHEMA.names)]
        return cls(frame[:rows], frame[rows:].reset_index(drop=True))

    def draw(self, rows: int, seed: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame, np.random.Generator]:
        """Return a reference, a batch, and the generator that drew them."""
        rng = np.random.default_rng(seed)
        sides = ((self.references, REFERENCE_ROWS), (self.batches, rows))
        reference, batch = (
            frame.iloc[rng.choice(len(frame), count, replace=False)].reset_index(drop=True) for frame, count in sides
        )
        return reference, batch, rng


# --- Changes ---


def one_column_up(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Move one number by a quarter of its standard deviation."""
    name = SHIFTED[rng.integers(len(SHIFTED))]
    return batch.assign(**{name: batch[name] + 0.25 * batch[name].std()})


def other_purposes(share: float) -> Change:
    """Return the change that gives a share of the rows another, known purpose."""

    def change(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        return batch.assign(purpose=batch["purpose"].where(rng.random(len(batch)) >= share, "medical"))

    return change


def lost_cells(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Lose a tenth of the cells of one number."""
    kept = rng.random(len(batch)) >= 0.1
    return batch.assign(revolving_utilisation=batch["revolving_utilisation"].where(kept))


def hundredfold(share: float) -> Change:
    """Return the change that writes a share of the incomes in cents."""

    def change(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
        wrong = rng.random(len(batch)) < share
        return batch.assign(annual_income=batch["annual_income"].where(~wrong, batch["annual_income"] * 100))

    return change


CHANGES: dict[str, Change] = {
    "+0.25 sd in one column": one_column_up,
    "10 % of purposes moved": other_purposes(0.1),
    "20 % of purposes moved": other_purposes(0.2),
    "10 % of cells lost": lost_cells,
    "x100 on 5 % of rows": hundredfold(0.05),
    "x100 on 20 % of rows": hundredfold(0.2),
    "x100 on all rows": hundredfold(1.0),
}


# --- Peers ---


def textbook_psi(reference: pd.DataFrame, batch: pd.DataFrame) -> float:
    """Return the largest index of all columns, as it is usually computed."""
    return max(_psi(reference[name].dropna(), batch[name].dropna()) for name in SCHEMA.names)


def _psi(before: "pd.Series[Any]", now: "pd.Series[Any]") -> float:
    if before.dtype == object:
        levels = before.unique()
        counts = [side.value_counts().reindex(levels, fill_value=0).to_numpy() for side in (before, now)]
    else:
        edges = np.unique(np.quantile(before, np.arange(1, 10) / 10))
        counts = [np.bincount(np.searchsorted(edges, side, side="left"), minlength=len(edges) + 1)
                  for side in (before, now)]  # fmt: skip
    q, p = (np.maximum(side / max(side.sum(), 1), 1e-4) for side in counts)
    return float(((p - q) * np.log(p / q)).sum())


def least_p(reference: pd.DataFrame, batch: pd.DataFrame) -> float:
    """Return the smallest probability of all columns' tests."""
    found = []
    for name in SCHEMA.names:
        before, now = reference[name].dropna(), batch[name].dropna()
        if before.dtype == object:
            levels = sorted({*before, *now})
            table = [side.value_counts().reindex(levels, fill_value=0).to_numpy() for side in (before, now)]
            found.append(float(stats.chi2_contingency(table).pvalue))
        else:
            found.append(float(stats.ks_2samp(before, now, method="asymp").pvalue))
    return min(found)


# --- Measurements ---


def verdict(reference: pd.DataFrame, window: Window) -> DriftFinding:
    return drift_verdict(reference, window, SCHEMA, SPEC.monitoring.bounds)


def single(
    pools: Pools, rows: int, batches: int, change: Change | None = None
) -> Iterator[tuple[DriftFinding, float, float]]:
    """Yield the verdict on each batch by itself, the textbook index and the smallest p."""
    for at in range(batches):
        reference, batch, rng = pools.draw(rows, [1, rows, at])
        batch = batch if change is None else change(batch, rng)
        window = Window(batch, (f"batch-{at}",), f"{at:04d}", f"{at:04d}")
        yield verdict(reference, window), textbook_psi(reference, batch), least_p(reference, batch)


def windowed(pools: Pools, rows: int, batches: int) -> list[DriftFinding]:
    """Return the verdict at each batch on the window that it closes, as the daily job reaches it."""
    reference, _, _ = pools.draw(rows, [2, rows])
    history, found = [], []
    for at in range(batches):
        _, batch, _ = pools.draw(rows, [2, rows, at])
        history.append(Batch(f"{at:04d}", f"batch-{at}", batch))
        found.append(verdict(reference, pooled(history[-10:], SPEC.monitoring.window_rows)))
    return found


def confirmed(findings: Sequence[DriftFinding]) -> list[bool]:
    return [persists(findings[max(0, at - 40) : at + 1], SPEC.monitoring.confirm) for at in range(len(findings))]


def print_false_alarms(pools: Pools, batches: int) -> None:
    print(f"False alarms, share of {batches} clean batches (bar: under 1 %)")
    print("rows    verdict  window  confirmed  PSI>0.25  PSI>0.10   p<0.05")
    for rows in SIZES:
        found = list(single(pools, rows, batches))
        findings = [each for each, _, _ in found]
        # From here on a batch is a window of its own.
        windows = windowed(pools, rows, batches) if rows < SPEC.monitoring.window_rows else findings
        shares = [
            np.mean([each.status == "drifted" for each in findings]),
            np.mean([each.status == "drifted" for each in windows]),
            np.mean(confirmed(windows)),
            np.mean([index > 0.25 for _, index, _ in found]),
            np.mean([index > 0.10 for _, index, _ in found]),
            np.mean([p < 0.05 for _, _, p in found]),
        ]
        print(f"{rows:5d}  {shares[0]:8.2%} {shares[1]:7.2%} {shares[2]:10.2%}"
              + "".join(f"{share:10.1%}" for share in shares[3:]))  # fmt: skip
        called = sorted({name for each in (*findings, *windows) for name in each.drifted})
        print("       columns of the false alarms:", ", ".join(called) or "none")


def print_power(pools: Pools, batches: int) -> None:
    print(f"\nPower, share of {batches} changed batches that are called drifted")
    print("change                     rows   verdict  PSI>0.25  PSI>0.10    p<0.05")
    for name, change in CHANGES.items():
        for rows in SIZES:
            found = list(single(pools, rows, batches, change))
            shares = [
                np.mean([each.status == "drifted" for each, _, _ in found]),
                np.mean([index > 0.25 for _, index, _ in found]),
                np.mean([index > 0.10 for _, index, _ in found]),
                np.mean([p < 0.05 for _, _, p in found]),
            ]
            print(f"{name:25s} {rows:5d}" + "".join(f"{share:10.1%}" for share in shares))


def print_unit_errors(days: int = 10) -> None:
    print("\nUnit errors in 5 % of rows: those that the contract quarantines (bar: 100 % of x100 and x0.01)")
    for column in ("annual_income", "loan_amount"):
        for factor in (100, 0.01, 12):
            world = LendingWorld(
                applications_per_day=1_000, dirt=0.0, unit_error_days=tuple(range(days)), unit_error_share=0.05,
                unit_error_column=column, unit_error_factor=factor,
            )  # fmt: skip
            affected = caught = others = 0
            for day in range(days):
                raw, clean = world.applications(day), world.typed_applications(day)
                wrong = ~np.isclose(raw[column].astype(float), clean[column])
                until = datetime.combine(world.date_of(day) + timedelta(days=1), datetime.min.time(), tzinfo=UTC)
                contract = applications_contract(SPEC, until)
                split = contract.split(raw.drop(columns=list(SPEC.protected_names)), where=f"day {day}")
                refused = set(split.quarantined["row"])
                rows = set(np.flatnonzero(wrong).tolist())
                affected, caught, others = (
                    affected + len(rows), caught + len(rows & refused), others + len(refused - rows),
                )  # fmt: skip
            told = f"{caught:,} of {affected:,} ({caught / affected:.2%}), and {others:,} rows that were right"
            print(f"x{factor:<5g} {column:14s} {told}")


def print_shock() -> None:
    """Print how the verdict fares day by day: two quiet years, then a shock to the economy."""
    quiet, days, reference_days = 180, 540, SPEC.monitoring.reference_periods
    shock = reference_days + quiet
    world = LendingWorld(shock=shock, dirt=0.0)
    history = [
        Batch(world.date_of(day).isoformat(), f"batch-{day}", world.typed_applications(day)[list(SCHEMA.names)])
        for day in range(days)
    ]
    reference = pd.concat([each.frame for each in history[:reference_days]], ignore_index=True)
    found = [
        verdict(reference, pooled(history[reference_days : day + 1], SPEC.monitoring.window_rows))
        for day in range(reference_days, days)
    ]
    called = [each.status == "drifted" for each in found]
    sure = confirmed(found)
    print(
        f"\nDay by day, 40 applications a day, reference of {len(reference):,} rows of the {reference_days} days before"
    )
    names = ", ".join(sorted({name for each in found[:quiet] for name in each.drifted})) or "none"
    shares = f"{np.mean(called[:quiet]):.1%} drifted, {np.mean(sure[:quiet]):.1%} confirmed"
    print(f"the {quiet} days before the shock: {shares}; columns {names}")
    after = [next((at for at, each in enumerate(side[quiet:]) if each), None) for side in (called, sure)]
    print(f"days from the shock to drift: {after[0]}, to confirmed drift: {after[1]}")
    print(found[-1].table(8)[["column", "status", "effect", "psi", "reason"]].to_string(index=False, max_colwidth=90))


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=500, help="clean batches of each size")
    parser.add_argument("--power", type=int, default=40, help="changed batches of each size and change")
    given = parser.parse_args()
    start, wall = time.process_time(), time.perf_counter()
    # Threads gain nothing on arrays of this size, and wait for each other on a busy machine.
    threadpool_limits(1)
    pools = Pools.of(LendingWorld())
    print(f"{len(SCHEMA.names)} features of the sample loan book, reference of {REFERENCE_ROWS:,} rows")
    print_unit_errors()
    print_false_alarms(pools, given.batches)
    print(f"({time.process_time() - start:.0f} CPU s, {time.perf_counter() - wall:.0f} s)")
    print_power(pools, given.power)
    print_shock()
    print(f"({time.process_time() - start:.0f} CPU s, {time.perf_counter() - wall:.0f} s)")


if __name__ == "__main__":
    main()
