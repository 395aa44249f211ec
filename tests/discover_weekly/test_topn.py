"""The exact top-N against scoring everything, over shapes, ties, signs and rules; and against implicit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from mlops_assets.discover_weekly import topn as module
from mlops_assets.discover_weekly.topn import TopN, TopNResult
from mlops_assets.foundation.errors import UserError


def brute_force(
    item_vectors: Any, user_vectors: Any, n: int, *, item_bias: Any = None, groups: Any = None, audiences: Any = None,
    exclude: Any = None, audience: Any = None, per_group: int | None = None, bias_weight: Any = None,
) -> TopNResult:  # fmt: skip
    """Score everything, sort everything, walk down: the definition, with nothing clever in it."""
    users, items = len(user_vectors), len(item_vectors)
    scores = user_vectors.astype(np.float64) @ item_vectors.T.astype(np.float64)
    if item_bias is not None:
        weight = np.ones(users) if bias_weight is None else bias_weight
        scores += weight.astype(np.float64)[:, None] * item_bias.astype(np.float64)
    scores = scores.astype(np.float32)
    found = np.full((users, n), -1, np.int32)
    values = np.full((users, n), np.nan, np.float32)
    for u in range(users):
        banned = set() if exclude is None else set(exclude.indices[exclude.indptr[u] : exclude.indptr[u + 1]].tolist())
        taken: dict[int, int] = {}
        length = 0
        for i in np.lexsort((np.arange(items), -scores[u])).tolist():
            if length == n:
                break
            if i in banned or (audiences is not None and not audiences[audience[u], i]):
                continue
            if per_group is not None and groups[i] >= 0:
                if taken.get(groups[i], 0) == per_group:
                    continue
                taken[groups[i]] = taken.get(groups[i], 0) + 1
            found[u, length], values[u, length] = i, scores[u, i]
            length += 1
    return TopNResult(found, values)


def assert_same(result: TopNResult, expected: TopNResult) -> None:
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_array_equal(result.scores, expected.scores)


def exclusions(rng: np.random.Generator, users: int, items: int, share: float) -> csr_matrix:
    matrix = csr_matrix(rng.random((users, items)) < share, dtype=np.float32)
    matrix.data[:] = rng.choice([0.0, 1.0, -3.0], matrix.nnz)
    return matrix


def world(seed: int, users: int, items: int, factors: int, *, whole: bool = False) -> tuple[Any, Any]:
    """Vectors whose lengths differ by orders of magnitude; whole numbers make many exact ties."""
    rng = np.random.default_rng(seed)
    if whole:
        return (
            rng.integers(-2, 3, (items, factors)).astype(np.float32),
            rng.integers(-2, 3, (users, factors)).astype(np.float32),
        )
    lengths = 1 / (1 + rng.permutation(items)) ** rng.uniform(0, 1.2)
    vectors = rng.standard_normal((items, factors)) * lengths[:, None]
    return vectors.astype(np.float32), rng.standard_normal((users, factors)).astype(np.float32)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_lists_equal_scoring_everything_under_every_combination_of_rules(data: st.DataObject) -> None:
    draw = data.draw
    users, items = draw(st.integers(0, 12)), draw(st.integers(0, 700))
    factors, n = draw(st.integers(1, 11)), draw(st.integers(0, 40))
    seed = draw(st.integers(0, 2**31))
    item_vectors, user_vectors = world(seed, users, items, factors, whole=draw(st.booleans()))
    rng = np.random.default_rng(seed + 1)
    catalogue: dict[str, Any] = {}
    request: dict[str, Any] = {}
    if draw(st.booleans()):
        request["exclude"] = exclusions(rng, users, items, draw(st.sampled_from([0.01, 0.3, 0.97, 1.0])))
    if draw(st.booleans()):
        catalogue["groups"] = rng.integers(-1, draw(st.sampled_from([1, 3, 100])), items).astype(np.int32)
        request["per_group"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        catalogue["audiences"] = rng.random((3, items)) < draw(st.sampled_from([0.02, 0.5, 1.0]))
        request["audience"] = rng.integers(0, 3, users).astype(np.int32)
    if draw(st.booleans()):
        catalogue["item_bias"] = rng.integers(-3, 4, items).astype(np.float32)
        if draw(st.booleans()):
            request["bias_weight"] = rng.integers(-2, 3, users).astype(np.float32)
    result = TopN(item_vectors, **catalogue).search(user_vectors, n, **request)
    assert_same(result, brute_force(item_vectors, user_vectors, n, **catalogue, **request))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_bias_of_either_sign_and_any_size(sign: float, scale: float) -> None:
    item_vectors, user_vectors = world(3, 150, 5000, 17)
    rng = np.random.default_rng(4)
    bias = (rng.standard_normal(5000) * scale).astype(np.float32)
    weight = (sign * rng.random(150)).astype(np.float32)
    result = TopN(item_vectors, item_bias=bias).search(user_vectors, 30, bias_weight=weight)
    assert_same(result, brute_force(item_vectors, user_vectors, 30, item_bias=bias, bias_weight=weight))


def test_bias_counts_once_for_everybody_without_weights() -> None:
    vectors = np.zeros((3, 2), np.float32)
    bias = np.array([1, 3, 2], np.float32)
    result = TopN(vectors, item_bias=bias).search(np.ones((1, 2), np.float32), 3)
    assert result.items.tolist() == [[1, 2, 0]]
    assert result.scores.tolist() == [[3.0, 2.0, 1.0]]


def test_ties_go_to_the_lower_index() -> None:
    vectors = np.tile(np.array([[1, 2]], np.float32), (1000, 1))
    result = TopN(vectors).search(np.array([[1, 1], [-1, -1], [0, 0]], np.float32), 5)
    assert result.items.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_nearly_tied_scores_are_ordered_by_their_float32_value() -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(64)
    vectors = (direction + rng.standard_normal((3000, 64)) * 1e-7).astype(np.float32)
    users = rng.standard_normal((40, 64)).astype(np.float32)
    assert_same(TopN(vectors).search(users, 30), brute_force(vectors, users, 30))


def test_all_scores_negative_still_fill_the_list() -> None:
    item_vectors, _ = world(5, 1, 800, 8)
    users = -np.ones((3, 8), np.float32)
    item_vectors = np.abs(item_vectors)
    assert_same(TopN(item_vectors).search(users, 30), brute_force(item_vectors, users, 30))


def test_a_zero_vector_gets_the_lowest_permitted_indices() -> None:
    item_vectors, _ = world(6, 1, 500, 8)
    exclude = csr_matrix((np.zeros(2), ([0, 0], [0, 2])), shape=(1, 500))
    groups = np.full(500, 7, np.int32)
    groups[10:] = -1
    result = TopN(item_vectors, groups=groups).search(np.zeros((1, 8), np.float32), 4, exclude=exclude, per_group=2)
    assert result.items.tolist() == [[1, 3, 10, 11]]
    assert result.scores.tolist() == [[0.0] * 4]


def test_stored_zeros_are_exclusions_too() -> None:
    exclude = csr_matrix((np.array([0.0]), np.array([0]), np.array([0, 1])), shape=(1, 2))
    assert TopN(np.array([[2], [1]], np.float32)).search(np.ones((1, 1), np.float32), 1, exclude=exclude).items == 1


def test_everything_excluded_gives_padding_and_no_excluded_item() -> None:
    item_vectors, user_vectors = world(7, 4, 300, 8)
    result = TopN(item_vectors).search(user_vectors, 10, exclude=csr_matrix(np.ones((4, 300))))
    assert (result.items == -1).all()
    assert np.isnan(result.scores).all()


def test_more_than_the_catalogue_is_padded() -> None:
    result = TopN(np.array([[1], [2]], np.float32)).search(np.ones((1, 1), np.float32), 4)
    assert result.items.tolist() == [[1, 0, -1, -1]]
    np.testing.assert_array_equal(result.scores, [[2, 1, np.nan, np.nan]])


@pytest.mark.parametrize(("users", "items", "factors", "n"), [(0, 5, 3, 4), (3, 0, 3, 4), (3, 5, 3, 0), (3, 5, 0, 4)])
def test_empty_sizes_work(users: int, items: int, factors: int, n: int) -> None:
    result = TopN(np.ones((items, factors), np.float32)).search(np.ones((users, factors), np.float32), n)
    assert result.items.shape == result.scores.shape == (users, n)
    assert (result.items.dtype, result.scores.dtype) == (np.int32, np.float32)


def test_a_cap_replaces_the_worst_of_the_group_that_came_first() -> None:
    # Long vectors are visited first, so the group's worse members are met before its best one.
    scores = np.array([5, 4, 9, 1, 8], np.float32)
    vectors = np.stack([scores, np.array([100, 90, 0, 80, 0], np.float32)], axis=1)
    groups = np.array([1, 1, 1, 2, 2], np.int32)
    result = TopN(vectors, groups=groups).search(np.array([[1, 0]], np.float32), 3, per_group=1)
    assert result.items.tolist() == [[2, 4, -1]]


def test_without_a_cap_groups_have_no_effect() -> None:
    item_vectors, user_vectors = world(8, 20, 600, 8)
    grouped = TopN(item_vectors, groups=np.zeros(600, np.int32)).search(user_vectors, 20)
    assert_same(grouped, TopN(item_vectors).search(user_vectors, 20))


def ruled_search(threads: int | None, rows: Any) -> TopNResult:
    item_vectors, user_vectors = world(9, 1200, 3000, 24)
    rng = np.random.default_rng(10)
    catalogue = TopN(
        item_vectors,
        item_bias=rng.standard_normal(3000).astype(np.float32) / 10,
        groups=rng.integers(-1, 200, 3000).astype(np.int32),
        audiences=rng.random((4, 3000)) < 0.7,
    )
    exclude, audience = exclusions(rng, 1200, 3000, 0.02), rng.integers(0, 4, 1200).astype(np.int32)
    weight = rng.standard_normal(1200).astype(np.float32)
    return catalogue.search(
        user_vectors[rows], 30, exclude=exclude[rows], audience=audience[rows], per_group=2,
        bias_weight=weight[rows], threads=threads,
    )  # fmt: skip


def test_threads_do_not_change_a_bit() -> None:
    everyone = np.arange(1200)
    one = ruled_search(1, everyone)
    for threads in (2, 5, None):
        assert_same(ruled_search(threads, everyone), one)


def test_a_list_does_not_depend_on_who_else_is_in_the_batch() -> None:
    together = ruled_search(1, np.arange(1200))
    shuffled = np.random.default_rng(0).permutation(1200)
    apart = ruled_search(2, shuffled)
    np.testing.assert_array_equal(apart.items, together.items[shuffled])
    np.testing.assert_array_equal(apart.scores, together.scores[shuffled])
    for user in (0, 1023, 1024, 1199):
        assert_same(
            ruled_search(1, np.array([user])),
            TopNResult(together.items[user : user + 1], together.scores[user : user + 1]),
        )


def test_read_only_and_strided_vectors_are_accepted() -> None:
    item_vectors, user_vectors = world(11, 30, 400, 8)
    expected = TopN(item_vectors).search(user_vectors, 10)
    frozen_items, frozen_users = item_vectors.copy(), user_vectors.copy()
    frozen_items.setflags(write=False)
    frozen_users.setflags(write=False)
    assert_same(TopN(frozen_items).search(frozen_users, 10), expected)
    assert_same(TopN(np.asfortranarray(item_vectors)).search(np.asfortranarray(user_vectors), 10), expected)


def test_wide_indices_are_accepted() -> None:
    item_vectors, user_vectors = world(12, 5, 400, 8)
    exclude = exclusions(np.random.default_rng(0), 5, 400, 0.5)
    expected = TopN(item_vectors).search(user_vectors, 10, exclude=exclude)
    exclude.indices, exclude.indptr = exclude.indices.astype(np.int64), exclude.indptr.astype(np.int64)
    assert_same(TopN(item_vectors).search(user_vectors, 10, exclude=exclude), expected)


def test_the_callers_arrays_may_change_after_construction() -> None:
    item_vectors, user_vectors = world(13, 5, 400, 8)
    catalogue = TopN(item_vectors)
    expected = catalogue.search(user_vectors, 10)
    item_vectors[:] = 0
    assert_same(catalogue.search(user_vectors, 10), expected)


def test_lists_equal_implicits() -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(14)
    liked = csr_matrix(rng.random((400, 2000)) < rng.random(2000) ** 4 / 4, dtype=np.float32)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=32, regularization=5.0, iterations=5, random_state=0, num_threads=1)
        model.fit(liked, show_progress=False)
        items, scores = model.recommend(np.arange(400), liked, N=30)
    result = TopN(model.item_factors).search(model.user_factors, 30, exclude=liked)
    np.testing.assert_allclose(result.scores, scores, rtol=0, atol=1e-5)
    differing = (result.items != items).any(axis=1)
    # implicit sums in float32, so neighbours whose scores differ in the last digit may swap.
    assert differing.mean() < 0.02


V, U = np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)
FULL = {
    "item_bias": np.zeros(4, np.float32),
    "groups": np.zeros(4, np.int32),
    "audiences": np.ones((2, 4), bool),
}


def with_value(array: Any, value: float) -> Any:
    changed = array.copy()
    changed.flat[-1] = value
    return changed


@pytest.mark.parametrize(
    ("vectors", "catalogue", "where"),
    [
        (V.astype(np.float64), {}, "item_vectors"),
        (V.tolist(), {}, "item_vectors"),
        (V[0], {}, "item_vectors"),
        (with_value(V, np.nan), {}, r"item_vectors\[3\]"),
        (with_value(V, -np.inf), {}, r"item_vectors\[3\]"),
        (V, {"item_bias": np.zeros(3, np.float32)}, "item_bias"),
        (V, {"item_bias": np.zeros(4)}, "item_bias"),
        (V, {"item_bias": np.array([0, 0, np.inf, 0], np.float32)}, r"item_bias\[2\]"),
        (V, {"groups": np.zeros(5, np.int32)}, "groups"),
        (V, {"groups": np.zeros(4, np.int64)}, "groups"),
        (V, {"audiences": np.ones((2, 3), bool)}, "audiences"),
        (V, {"audiences": np.ones((2, 4), np.int8)}, "audiences"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(vectors: Any, catalogue: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=f"^{where}: "):
        TopN(vectors, **catalogue)


def unsorted(indices: list[int]) -> csr_matrix:
    return csr_matrix((np.ones(2), np.array(indices, np.int32), np.array([0, 0, 2], np.int32)), shape=(2, 4))


def out_of_range(item: int) -> csr_matrix:
    matrix = unsorted([0, 1])
    matrix.indices[1] = item
    return matrix


def broken_pointers() -> csr_matrix:
    matrix = unsorted([0, 1])
    matrix.indptr[1] = 9
    return matrix


@pytest.mark.parametrize(
    ("users", "change", "where"),
    [
        (U.astype(np.float64), {}, "user_vectors"),
        (U[:, :2], {}, "user_vectors"),
        (with_value(U, np.nan), {}, r"user_vectors\[1\]"),
        (with_value(U, 2e38), {}, r"user_vectors\[1\]"),
        (U, {"n": -1}, "n"),
        (U, {"n": 2.0}, "n"),
        (U, {"threads": 0}, "threads"),
        (U, {"per_group": 0}, "per_group"),
        (U, {"audience": None}, "audience"),
        (U, {"audience": np.array([0, 2], np.int32)}, r"audience\[1\]"),
        (U, {"audience": np.array([-1, 1], np.int32)}, r"audience\[0\]"),
        (U, {"audience": np.array([0, 1])}, "audience"),
        (U, {"bias_weight": np.ones(3, np.float32)}, "bias_weight"),
        (U, {"bias_weight": np.array([1, np.nan], np.float32)}, r"bias_weight\[1\]"),
        (U, {"exclude": csr_matrix((3, 4))}, "exclude"),
        (U, {"exclude": csr_matrix((2, 5))}, "exclude"),
        (U, {"exclude": csr_matrix((2, 4)).tocsc()}, "exclude"),
        (U, {"exclude": np.zeros((2, 4))}, "exclude"),
        (U, {"exclude": unsorted([3, 1])}, "exclude, row 1"),
        (U, {"exclude": out_of_range(4)}, "exclude, row 1"),
        (U, {"exclude": out_of_range(-1)}, "exclude, row 1"),
        (U, {"exclude": broken_pointers()}, "exclude"),
    ],
)
def test_a_wrong_request_is_refused_by_name(users: Any, change: dict[str, Any], where: str) -> None:
    request = {"n": 2, "audience": np.zeros(2, np.int32), **change}
    with pytest.raises(UserError, match=f"^{where}: "):
        TopN(V, **FULL).search(users, **request)


@pytest.mark.parametrize(
    "rule",
    [{"per_group": 1}, {"audience": np.zeros(2, np.int32)}, {"bias_weight": np.ones(2, np.float32)}],
)
def test_a_rule_that_the_catalogue_cannot_apply_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(rule))):
        TopN(V).search(U, 1, **rule)


@pytest.mark.parametrize(("users", "workers"), [(1, 2), (129, 2), (100_000, 2), (5000, 64)])
def test_tasks_cover_every_user_once(users: int, workers: int) -> None:
    tasks = module._tasks(users, workers)
    assert [user for first, last in tasks for user in range(first, last)] == list(range(users))


SCRIPT = """
import numpy as np
from mlops_assets.discover_weekly.topn import TopN
print(TopN(np.eye(3, dtype=np.float32)).search(np.eye(3, dtype=np.float32), 1).items.ravel().tolist())
"""


def test_an_installation_without_any_writable_place_still_works(tmp_path: Path) -> None:
    # Files in the way of the cache folders stop even root, whom permissions would not.
    source = Path(module.__file__).parents[1]
    package = tmp_path / "mlops_assets"
    for relative in ("__init__.py", "foundation/__init__.py", "foundation/errors.py", "discover_weekly/__init__.py",
                     "discover_weekly/topn.py", "discover_weekly/_topn_kernel.py"):  # fmt: skip
        (package / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / relative, package / relative)
    (package / "discover_weekly" / "__pycache__").write_text("in the way")
    home = tmp_path / "home"
    home.write_text("in the way")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1, 2]"


def test_importing_the_module_imports_neither_numba_nor_scipy() -> None:
    check = "import sys, mlops_assets.discover_weekly.topn; assert not {'numba', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
