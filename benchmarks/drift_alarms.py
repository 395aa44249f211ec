"""How often drift is called where there is none, and how often it is found where there is.

Run with ``python -m benchmarks.drift_alarms [--batches 400]``. The table of 20 columns mixes what real tables hold:
normal, skewed, heavy-tailed, zero-inflated, whole and nearly constant numbers, few, many and very many categories, and
missing cells. References have 10,000 rows. Everything is seeded.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from mlops_assets.foundation.drift import measure, report
from mlops_assets.foundation.profiling import check, profile

REFERENCE_ROWS = 10_000
SHIFT = 0.25
RARE = 1 / np.arange(1, 2001) ** 1.2


def table(rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return ``rows`` rows of 20 columns of many kinds, always of the same distribution."""
    heavy = rng.standard_t(3, rows)
    columns: dict[str, object] = {f"normal_{i}": rng.normal(50, 10, rows) for i in range(4)}
    columns |= {f"amount_{i}": rng.lognormal(3, 1, rows) for i in range(3)}
    columns |= {
        "very_skewed": rng.lognormal(0, 2.5, rows),
        "heavy_tail": heavy,
        "rate": rng.beta(2, 50, rows) / 1e4,
        "zero_inflated": rng.exponential(5, rows) * (rng.random(rows) < 0.3),
        "whole": rng.poisson(3, rows),
        "rare_flag": (rng.random(rows) < 0.01).astype(int),
        "half_missing": np.where(rng.random(rows) < 0.5, np.nan, rng.normal(0, 1, rows)),
        "yes_no": rng.random(rows) < 0.4,
        "grade": rng.choice(list("abcdefg"), rows, p=[0.3, 0.25, 0.2, 0.1, 0.08, 0.05, 0.02]),
        "rare_grade": rng.choice(list("abc"), rows, p=[0.989, 0.01, 0.001]),
        "city": rng.choice([f"city {i}" for i in range(60)], rows, p=RARE[:60] / RARE[:60].sum()),
        "long_tail": rng.choice([f"value {i}" for i in range(2000)], rows, p=RARE / RARE.sum()),
        "sometimes": np.where(rng.random(rows) < 0.05, None, rng.choice(["x", "y"], rows)),
    }
    return pd.DataFrame(columns)


Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def shifted_normal(batch: pd.DataFrame, _rng: np.random.Generator) -> pd.DataFrame:
    """Shift one column of 20 by a quarter of its standard deviation."""
    return batch.assign(normal_0=batch["normal_0"] + SHIFT * 10)


def doubled_skewed(batch: pd.DataFrame, _rng: np.random.Generator) -> pd.DataFrame:
    """Double a very skewed column, which moves it by a small part of its standard deviation."""
    return batch.assign(very_skewed=batch["very_skewed"] * 2)


def moved_categories(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Give a tenth of all rows a category that the reference never had."""
    return batch.assign(grade=batch["grade"].where(rng.random(len(batch)) >= 0.1, "z"))


def lost_cells(batch: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Lose a tenth of the cells of one column."""
    return batch.assign(whole=batch["whole"].where(rng.random(len(batch)) >= 0.1))


def alarms(
    rows: int, batches: int, change: Change | None = None, seed: int = 0
) -> Iterator[tuple[bool, Sequence[str]]]:
    """Yield, batch by batch, whether drift was called and in which columns."""
    for batch in range(batches):
        rng = np.random.default_rng([seed, rows, batch])
        reference, current = table(REFERENCE_ROWS, rng), table(rows, rng)
        result = measure(reference, current if change is None else change(current, rng))
        yield result.status == "drifted", [each.column for each in result.columns if each.status == "drifted"]


def profile_alarms(rows: int, batches: int, seed: int = 0) -> Iterator[list[str]]:
    """Yield the failed profile rules of clean batches; the reference has four batches of the same size."""
    for batch in range(batches):
        rng = np.random.default_rng([seed, rows, batch])
        reference = profile(table(rows, rng))
        for _ in range(3):
            reference = reference.merge(profile(table(rows, rng)))
        found = check(profile(table(rows, rng)), reference)
        yield [f"{each.code} {each.column}" for each in found if each.status == "failed"]


def main() -> None:
    """Print the shares of batches with an alarm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=400)
    batches = parser.parse_args().batches
    print(f"{batches} batches each, 20 columns, reference of {REFERENCE_ROWS:,} rows")
    print("rows   clean    +0.25 sd  x2 skewed  new category  lost cells")
    clean_columns: list[str] = []
    for rows in (200, 1000, 5000):
        found = list(alarms(rows, batches))
        clean_columns += [name for _, names in found for name in names]
        shares = [np.mean([called for called, _ in found])]
        for change in (shifted_normal, doubled_skewed, moved_categories, lost_cells):
            shares.append(np.mean([called for called, _ in alarms(rows, max(batches // 4, 50), change, seed=1)]))
        print(f"{rows:5d} {shares[0]:7.2%} {shares[1]:10.1%} {shares[2]:10.1%} {shares[3]:13.1%} {shares[4]:11.1%}")
    print("columns of the false alarms:", ", ".join(clean_columns) or "none")
    for rows in (200, 1000, 5000):
        rules = [rule for failed in profile_alarms(rows, batches) for rule in [failed] if rule]
        print(f"profile rules, {rows} rows: {len(rules) / batches:.2%} of clean batches", rules[:5])
    rng = np.random.default_rng(0)
    big = [table(50_000, rng).iloc[:, ::2] for _ in range(2)]
    for name, step in (("measure", measure), ("report", report)):
        start, wall = time.process_time(), time.perf_counter()
        step(*big)
        print(f"{name} 50,000 x 10: {time.process_time() - start:.2f} CPU s, {time.perf_counter() - wall:.2f} s")


if __name__ == "__main__":
    main()
