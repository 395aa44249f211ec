"""Trees that run against a direction are found, and those that do not are proved."""

from collections.abc import Sequence

import numpy as np
import pytest

from mlops_assets.credit_risk import gbm
from mlops_assets.credit_risk.directions import Breach, breaches
from mlops_assets.credit_risk.encoding import Column
from tests.credit_risk.small_loans import SCHEMA, slices, small_loans, small_spec


def tree(columns: Sequence[int], left: Sequence[int], right: Sequence[int], leaves: Sequence[float]) -> str:
    """Return one tree as LightGBM writes it; negative children are leaves: -1 the first, -2 the second."""
    rows = {"split_feature": columns, "left_child": left, "right_child": right, "leaf_value": leaves}
    return "Tree=0\n" + "\n".join(f"{name}={' '.join(map(str, values))}" for name, values in rows.items())


def forest(*trees: str) -> str:
    numbered = [text.replace("Tree=0", f"Tree={number}") for number, text in enumerate(trees)]
    return "\n\n".join(["tree\nversion=v4", *numbered, "end of trees\n\nleaf_value=0 0\n"])


# x0 <= a ? leaf 0 : (x1 <= b ? leaf 1 : leaf 2)
def stairs(*leaves: float) -> str:
    return forest(tree([0, 1], [-1, -2], [1, -3], leaves))


@pytest.mark.parametrize(
    ("leaves", "monotone", "found"),
    [
        pytest.param((0.0, 1.0, 2.0), (1, 1), [], id="rises everywhere"),
        pytest.param((0.0, 2.0, 1.0), (1, 0), [], id="turns where it is free"),
        pytest.param((0.0, 2.0, 1.5), (1, 1), [Breach(0, 1, 0.5)], id="falls below"),
        pytest.param((1.0, 2.0, 0.25), (1, 0), [Breach(0, 0, 0.75)], id="a leaf two steps away lies lower"),
        pytest.param((2.0, 1.0, 1.0), (-1, 1), [], id="falls as it should"),
        pytest.param((0.0, 1.0, 2.0), (-1, 0), [Breach(0, 0, 2.0)], id="rises where it should fall"),
        pytest.param((1.0, 1.0, 1.0), (1, -1), [], id="flat"),
        pytest.param((0.0, 2.0, 1.0), (0, 0), [], id="all free"),
    ],
)
def test_a_tree_is_judged_at_every_split(
    leaves: tuple[float, ...], monotone: tuple[int, int], found: list[Breach]
) -> None:
    assert breaches(stairs(*leaves), monotone) == found


def test_the_tree_is_named() -> None:
    rises, falls = tree([0], [-1], [-2], [0.0, 1.0]), tree([0], [-1], [-2], [1.0, 0.5])
    assert breaches(forest(rises, falls, rises), [1]) == [Breach(1, 0, 0.5)]


def test_a_tree_of_one_leaf_has_no_direction() -> None:
    assert breaches(forest("Tree=0\nnum_leaves=1\nleaf_value=0.25"), [1]) == []


def trained(monotone: Sequence[int]) -> str:
    import lightgbm

    (train, bad), _ = slices(small_loans())
    x = train[["income", "debts", "amount"]].to_numpy(dtype=float)
    given = {"monotone_constraints": list(monotone), "monotone_constraints_method": "basic"} if any(monotone) else {}
    parameters = {"objective": "binary", "min_data_in_leaf": 10, "verbosity": -1, "num_threads": 1, **given}
    return lightgbm.train(parameters, lightgbm.Dataset(x, bad, params={"verbosity": -1}), 30).model_to_string()


def test_real_trees_are_proved_and_free_ones_are_not() -> None:
    assert breaches(trained([-1, 1, 0]), [-1, 1, 0]) == []
    free = breaches(trained([0, 0, 0]), [-1, 1, 0])
    assert len(free) > 50
    assert {breach.column for breach in free} == {0, 1}
    assert min(breach.excess for breach in free) > 0


def test_a_breach_means_that_some_prediction_turns() -> None:
    import lightgbm

    text = trained([0, 0, 0])
    booster = lightgbm.Booster(model_str=text)
    (train, _), _ = slices(small_loans())
    x = train[["income", "debts", "amount"]].to_numpy(dtype=float)[:200]
    steps = []
    for income in np.linspace(8_000, 60_000, 80):
        x[:, 0] = income
        steps.append(booster.predict(x, raw_score=True))
    assert (np.diff(np.array(steps), axis=0) > 1e-9).any()
    assert any(breach.column == 0 for breach in breaches(text, [-1, 0, 0]))


def test_a_training_that_breaks_its_promise_is_stopped() -> None:
    columns = [Column("c0", "income", -1), Column("c1", "debts", 1), Column("c2", "amount", 0)]
    with pytest.raises(ArithmeticError, match=r"split\(s\) run against the direction of their feature, the worst on '"):
        gbm._prove_directions(trained([0, 0, 0]), columns)


def test_every_challenger_is_proved() -> None:
    model = gbm.fit(SCHEMA, small_spec().gbm, *slices(small_loans()))
    assert breaches(model.trees, [column.monotone for column in model.encoder.columns]) == []
    against = [-column.monotone for column in model.encoder.columns]
    assert breaches(model.trees, against) != []
