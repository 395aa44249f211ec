"""Decisions that were made once and are kept as files come out with the same bytes here, whatever here is.

`frozen/` holds two small models as they are stored, a scorecard and a boosted one, the context of each, and decisions
of both on applications of every kind, all made by this module:

    python -m tests.credit_risk.test_replay_elsewhere generate

Nothing of it is made by the libraries that the tests run with, so another Python, NumPy, pandas or LightGBM that
changes one byte of one decision is found here. What is kept is never made again to please a test: decisions that are in
somebody's log would differ in the same way.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.credit_risk import gbm, models, outliers, pipeline, scorecard
from mlops_assets.credit_risk.deciding import Decider, Request
from mlops_assets.credit_risk.decision_log import DecisionLog
from mlops_assets.credit_risk.outliers import OUTLIERS_FILE
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.replaying import Replayer, ReplaySummary
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec, parse_spec
from mlops_assets.credit_risk.training import REASONS_FILE
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.journal import Journal
from mlops_assets.foundation.registry import Registry
from tests.credit_risk.small_loans import RAW, small_loans

ROOT = Path(__file__).resolve().parents[2]
FROZEN = Path(__file__).parent / "frozen"
KINDS = ("scorecard", "gbm")
DAY = "2024-09-02"
DECIDING = {"quarantined", "insufficient_file", "out_of_range", "outlier", "below_cut", "above_cut", "near_cut"}
"""The rules that decide something in what is kept; later ones do not change it."""


# --- What is kept, as a log and a registry ---


def kept_decisions() -> list[bytes]:
    """The canonical JSON of every kept decision."""
    return (FROZEN / "decisions.jsonl").read_bytes().splitlines()


def kept_contexts() -> dict[str, dict[str, Any]]:
    """The context of each kind of model."""
    found: dict[str, dict[str, Any]] = json.loads((FROZEN / "contexts.json").read_bytes())
    return found


def log_of(bodies: Sequence[Mapping[str, Any]], folder: Path, contexts: Mapping[str, Any]) -> DecisionLog:
    """A log with these decisions, each in the context that it names."""
    log = DecisionLog(Journal(folder / "decisions.db"))
    for context in contexts.values():
        sha256 = log.context(context)
        log.append([body for body in bodies if body["context_sha256"] == sha256], sha256)
    return log


def registry_at(folder: Path) -> Registry:
    """The registry of the kept versions: MLflow is not asked when they are read."""
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", FROZEN / "models")


def replayed(bodies: Sequence[Mapping[str, Any]], folder: Path) -> ReplaySummary:
    """Make these decisions again."""
    log = log_of(bodies, folder, kept_contexts())
    return Replayer(log, registry_at(folder)).replay(log.journal.read("decision"))


def told(found: ReplaySummary) -> list[Any]:
    """What differs, in words."""
    return [(each.decision_id, each.rows()) for each in found.differing]


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept_decisions()]


class TestHere:
    def test_every_decision_comes_out_with_the_same_bytes(self, bodies, tmp_path):
        found = replayed(bodies, tmp_path)
        assert told(found) == []
        assert found.equal == len(bodies)

    def test_so_does_each_by_itself_on_two_threads(self, bodies, tmp_path, monkeypatch):
        monkeypatch.setattr(gbm, "_threads", lambda matrix: 2)
        log = log_of(bodies, tmp_path, kept_contexts())
        replayer = Replayer(log, registry_at(tmp_path))
        for entry in log.journal.read("decision"):
            found = replayer.replay([entry])
            assert (told(found), found.equal) == ([], 1)

    def test_what_is_kept_is_canonical_and_named_by_its_hash(self, bodies):
        assert [canonical_json(body) for body in bodies] == kept_decisions()
        for body in bodies:
            assert sha256_hex(canonical_json(body["payload"])) == body["payload_sha256"]
        named = {sha256_hex(canonical_json(context)) for context in kept_contexts().values()}
        assert {body["context_sha256"] for body in bodies} == named

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_that_is_read_and_written_keeps_its_bytes(self, kind, tmp_path):
        registry = registry_at(tmp_path)
        stored = registry.fetch(registry.get("frozen.pd_model", KINDS.index(kind) + 1))
        models.load(stored).save(tmp_path)
        written = [path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".txt")]
        assert "model.json" in written
        for name in written:
            assert (tmp_path / name).read_bytes() == (stored / name).read_bytes(), name

    def test_what_is_kept_says_something(self, bodies):
        """Each rule of then decides something for each kind of model, and reasons of all themes are among it."""
        by_kind: dict[str, set[str]] = {kind: set() for kind in KINDS}
        named = {sha256_hex(canonical_json(context)): kind for kind, context in kept_contexts().items()}
        for body in bodies:
            by_kind[named[body["context_sha256"]]].add(body["result"]["rule"])
        assert by_kind == dict.fromkeys(KINDS, DECIDING)
        themes = {reason["theme"] for body in bodies for reason in body["result"]["reasons"]}
        assert themes == set(RAW["themes"])
        assert sum(path.stat().st_size for path in FROZEN.rglob("*") if path.is_file()) < 100_000


class TestItWouldBeNoticed:
    def test_one_last_bit_of_a_probability(self, bodies, tmp_path):
        at = next(at for at, body in enumerate(bodies) if body["result"]["pd"] is not None)
        result = bodies[at]["result"]
        other = float(np.nextafter(float.fromhex(result["pd"]), 1.0)).hex()
        found = replayed([{**bodies[at], "result": {**result, "pd": other}}, *bodies[at + 1 :]], tmp_path)
        assert [each.rows() for each in found.differing] == [[("result.pd", other, result["pd"])]]

    @pytest.mark.parametrize(
        ("number", "name", "old", "new"),
        [(1, "model.json", b'"points":', b'"points": '), (2, "gbm.txt", b"leaf_value=", b"leaf_value= ")],
        ids=["scorecard", "gbm"],
    )
    def test_a_byte_of_a_model(self, bodies, tmp_path, number, name, old, new):
        shutil.copytree(FROZEN / "models", tmp_path / "models")
        path = tmp_path / "models" / "frozen.pd_model" / f"v{number}" / "files" / name
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        log = log_of(bodies, tmp_path, kept_contexts())
        registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "models")
        found = Replayer(log, registry).replay(log.journal.read("decision"))
        of_it = sha256_hex(canonical_json(kept_contexts()[KINDS[number - 1]]))
        assert len(found.differing) == sum(body["context_sha256"] == of_it for body in bodies)
        assert all("expected SHA-256" in each.problem for each in found.differing)


@pytest.mark.parametrize(
    ("seed", "threads", "vectors"), [("0", "1", True), ("4242", "4", False)], ids=["one thread", "no vector units"]
)
def test_another_process_makes_the_same_bytes(seed, threads, vectors, bodies):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    if not vectors:  # as on an older processor
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(np.show_config("dicts")["SIMD Extensions"]["found"])
    command = [sys.executable, "-m", "tests.credit_risk.test_replay_elsewhere", "replay"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"compared": len(bodies), "differing": []}


# --- Making it ---

SETTINGS: Mapping[str, Any] = {
    **RAW,
    "name": "frozen",
    "numeric": [
        {"name": "income", "theme": "means", "low": 0, "high": 1_000_000, "risk": "falls", "replace": {"n/a": ""}},
        {"name": "debts", "theme": "debts", "low": 0, "special": {-9: "no file at the bureau"}, "risk": "rises"},
        {"name": "amount", "theme": "terms", "low": 0, "nullable": False},
    ],
    "ratios": [{"numerator": "income", "denominator": "amount", "low": 0.01}],
    "themes": {
        **RAW["themes"],
        "means": {"sentence": "Income or place of residence", "when_missing": "Income is not stated"},
    },
    "gbm": {"trees": 14, "learning_rate": 0.25, "leaves": 6},
    "outliers": {"trees": 10, "share": 0.02},
    "policy": {"accept_below": 0.12, "reject_from": 0.2, "insufficient": ["income", "debts"]},
}

IN_ORDER: Mapping[str, Any] = {
    "application_id": "A", "applied_at": f"{DAY}T10:00:00Z", "income": 31_000, "debts": 3, "amount": 4_000,
    "region": "A", "purpose": "car",
}  # fmt: skip

SCORED: Sequence[Mapping[str, Any]] = [
    {},
    {"income": 14_000, "debts": 8},
    {"income": 9_000.25, "debts": 11, "amount": 11_000, "region": "B"},
    {"income": " 31000 ", "debts": "3.0", "amount": "4e3"},
    {"income": 0.1 + 0.2, "amount": 1e-3},
    {"income": None, "purpose": None},
    {"income": "n/a", "region": " ", "applied_at": f"{DAY}T12:30:00+05:30"},
    {"debts": -9},
    {"income": None, "debts": -9},
    {"region": "süd-中", "application_id": "Å-ß"},
    {"region": "Z", "debts": 11, "amount": 19_999.99, "income": 150_000},
    {"region": "C", "debts": 11, "amount": 19_900, "income": 90_000, "purpose": "home"},
    {"region": "C", "debts": 0, "amount": 510, "income": 90_000, "purpose": "home"},
    {"income": 999_999.5},
    {"debts": 5e-324, "amount": -0.0, "income": 25_000},
    {"income": -1},
]
QUARANTINED: Sequence[Mapping[str, Any]] = [
    {"amount": None},
    {"amount": 1e15},
    {"debts": "N/A"},
    {"income": "31.000,50"},
    {"debts": "inf"},
    {"purpose": "=1+1"},
    {"applied_at": "2031-01-01T00:00:00Z"},
    {"applied_at": "soon", "application_id": None},
    {"application_id": "twice"},
]
"""What differs from `IN_ORDER`; the last one is refused for what other rows said, the first one stands in `SCORED`."""
ROWS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    # Which rows are quarantined is nothing that the model has a say in.
    "scorecard": [*SCORED, *QUARANTINED],
    "gbm": SCORED,
}


def generate(folder: Path) -> None:
    """Train two small models, decide, and write everything that is kept."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = parse_spec(SETTINGS, where="test", base=Path())
    contexts: dict[str, Any] = {}
    lines: list[bytes] = []
    with tempfile.TemporaryDirectory() as made:
        registry = Registry(f"sqlite:///{made}/mlflow.db", folder / "models")
        for kind, files in zip(KINDS, _trained(spec, Path(made)), strict=True):
            params, tags = {"kind": kind}, {"period": DAY, "trained_by": "anna"}
            stored = registry.register("frozen.pd_model", files, params=params, metrics={}, parts={}, tags=tags)
            decider = pipeline.load_decider(spec, registry, stored)
            context = pipeline.decision_context(spec, decider, stored, "run-1")
            libraries = {name: version(name) for name in ("numpy", "pandas", "lightgbm")}
            contexts[kind] = {**context, "made_by": {"python": platform.python_version(), **libraries}}
            sha256 = sha256_hex(canonical_json(contexts[kind]))
            known = {"decided_at": f"{DAY}T23:30:00+00:00", "context_sha256": sha256}
            lines += [canonical_json({**record, **known}) for record in _decided(decider, kind)]
    for path in folder.glob("models/*/v*/version.json"):
        # Where it was made is nobody's business; the hash of a version covers its files alone.
        raw = json.loads(path.read_bytes())
        path.chmod(0o644)
        path.write_bytes(canonical_json({**raw, "uri": "frozen", "created": f"{DAY}T00:00:00+00:00"}))
    (folder / "contexts.json").write_bytes(canonical_json(contexts))
    (folder / "decisions.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def _trained(spec: Spec, made: Path) -> Iterator[Path]:
    """Yield the folder of a scorecard and that of a boosted model, both with the same small forest."""
    schema, frame = FeatureSchema.of(spec), small_loans()
    parts = [(schema.matrix(part), part["bad"].to_numpy()) for part in (frame.iloc[:1_400], frame.iloc[1_400:])]
    table = ReasonTable.of(spec)
    few = outliers.fit(schema, spec.outliers, parts[0][0].iloc[:12], seed=7)
    fitted = (scorecard.fit(schema, spec.scorecard, *parts), gbm.fit(schema, spec.gbm, *parts, seed=7))
    for model in fitted:
        folder = made / model.kind
        folder.mkdir()
        model.save(folder)
        few.save(folder)
        (folder / REASONS_FILE).write_bytes(canonical_json({"version": table.version, "themes": table.to_dict()}))
        assert (folder / OUTLIERS_FILE).is_file()
        yield folder


def _decided(decider: Decider, kind: str) -> Iterator[dict[str, Any]]:
    raw = [{**IN_ORDER, "application_id": f"{at:02d}", **row} for at, row in enumerate(ROWS[kind])]
    refused = {at: ["one_content"] for at, row in enumerate(raw) if row["application_id"] == "twice"}
    for row in raw:
        # The same content is decided once, so what two models decide on are two applications.
        row["application_id"] = row["application_id"] and f"{row['application_id']} {kind}"
    payloads = [canonical_json(row).decode() for row in raw]
    request = Request(
        payloads=payloads,
        until=datetime(2024, 9, 3, tzinfo=UTC),
        period=DAY,
        channel="batch",
        received_at=f"{DAY}T23:00:00+00:00",
        batch_id=f"{DAY}-000000000000",
        sources=[{"file": "f.csv", "row": at} for at in range(len(payloads))],
        refused=refused,
    )
    yield from decider.records(decider.decide(request))


def main() -> None:
    """``generate`` writes what is kept; ``replay`` makes it again and prints what came out."""
    if sys.argv[1:] == ["generate"]:
        generate(FROZEN)
    elif sys.argv[1:] == ["replay"]:
        with tempfile.TemporaryDirectory() as folder:
            found = replayed([json.loads(line) for line in kept_decisions()], Path(folder))
        print(json.dumps({"compared": found.compared, "differing": told(found)}))
    else:
        sys.exit(main.__doc__)


if __name__ == "__main__":
    main()
