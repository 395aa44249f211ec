"""A decision made again from its record has the same bytes; where it cannot have them, what is amiss is named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.credit_risk import replaying
from mlops_assets.credit_risk.gbm import Gbm
from mlops_assets.credit_risk.replaying import COMPARED, Difference, Replayer, ReplaySummary
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.journal import Entry
from tests.credit_risk.decided_world import (
    BOOSTED,
    EDGES,
    GBM,
    GOOD,
    KINDS,
    PLAIN,
    SCORECARD,
    World,
    request_of,
    texts,
)

ROOT = Path(__file__).parents[2]
ELSEWHERE = """
import sys
from pathlib import Path
from mlops_assets.credit_risk import gbm
from mlops_assets.credit_risk.replaying import Replayer
from tests.credit_risk.decided_world import World, spec_at

gbm._THREADS = int(sys.argv[2])
lender = World(Path(sys.argv[1]), spec_at(Path(sys.argv[1])))
found = Replayer(lender.log(), lender.registry).replay(lender.log().journal.read("decision"))
print(found.compared, found.equal)
"""


def replayed(world: World, *days: str) -> ReplaySummary:
    log = world.log()
    entries = [entry for day in days or (PLAIN, EDGES, BOOSTED) for entry in log.of_period(day)]
    return Replayer(log, world.registry).replay(entries)


def problems(found: ReplaySummary) -> set[str]:
    return {difference.problem for difference in found.differing}


def altered(world: World, change: Callable[[dict[str, Any]], None], day: str = EDGES, at: int = 0) -> Entry:
    """Record a decision anew with something changed, as somebody would who forges the log from its beginning on."""
    entries = [entry for entry in world.log().of_period(day) if entry.body["result"]["pd"]]
    body = json.loads(entries[at].text)
    body["decision_id"] = f"forged-{at}"
    change(body)
    context = body.pop("context_sha256")
    assert world.log().append([body], context) == 1
    return world.log().get(body["decision_id"])


def one_bit_more(number: str) -> str:
    return float(np.nextafter(float.fromhex(number), 1.0)).hex()


class TestSame:
    @pytest.mark.parametrize("day", [PLAIN, EDGES, BOOSTED])
    def test_every_decision_of_a_day(self, lender, day):
        found = replayed(lender, day)
        assert found.differing == []
        assert found.equal == found.compared == len(list(lender.log().of_period(day))) > 25

    def test_all_at_once_in_any_order_and_alone(self, lender):
        entries = list(lender.log().journal.read("decision"))
        replayer = Replayer(lender.log(), lender.registry)
        np.random.default_rng(1).shuffle(entries)  # type: ignore[arg-type]
        assert replayer.replay(entries).equal == len(entries)
        assert sum(replayer.replay([entry]).equal for entry in entries) == len(entries)

    @pytest.mark.parametrize("rows", [1, 7, 40])
    def test_whatever_the_portions(self, lender, monkeypatch, rows):
        monkeypatch.setattr(replaying, "_ROWS", rows)
        assert replayed(lender).equal == replayed(lender).compared

    @pytest.mark.parametrize(("seed", "threads"), [("0", "1"), ("4242", "2")])
    def test_in_another_process(self, lender, seed, threads):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, "PYTHONHASHSEED": seed, **dict.fromkeys(names, threads)}
        told = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(lender.home), threads], cwd=ROOT, env=environment, check=True,
            capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        count = sum(1 for _ in lender.log().journal.read("decision"))
        assert told == [str(count), str(count)]

    def test_what_came_one_by_one_at_moments_of_its_own(self, copied):
        log, decider = copied.log(), copied.decider(GBM)
        context = next(iter(log.of_period(BOOSTED))).body["context_sha256"]
        for minute, (changes, _) in enumerate(KINDS.values()):
            moment = f"{EDGES}T12:{minute:02d}:00.000001+00:00"
            row = {**GOOD, "application_id": f"api-{minute}", **changes}
            request = request_of(texts([row]), channel="api", batch_id=None, received_at=moment)
            made = [{**record, "decided_at": moment} for record in decider.records(decider.decide(request))]
            assert log.append(made, context) == 1
        found = Replayer(log, copied.registry).replay(log.touched(channel="api"))
        assert (found.compared, found.equal) == (len(KINDS), len(KINDS))

    @pytest.mark.parametrize(
        "since",
        [
            {"policy": {"accept_below": 0.001, "reject_from": 0.002, "reasons": 1, "refer_outliers": False}},
            {"ratios": [{"numerator": "annual_income", "denominator": "loan_amount", "low": 500, "high": 501}]},
            {"data": {"code_list_version": "7"}},
            {"protected": [{"name": "region_of_birth"}]},
            {"periods": {"timezone": "Asia/Tokyo"}, "themes": {"income": {"sentence": "Another sentence of today."}}},
        ],
        ids=["policy", "ratio", "code list", "protected", "time and words"],
    )
    def test_though_the_settings_have_changed_since(self, copy_of, since):
        with copy_of("later", **since) as world:
            assert replayed(world).equal == replayed(world).compared > 80

    def test_though_features_came_and_went_and_have_other_ranges_since(self, copy_of, lender):
        numeric = [
            {**each.model_dump(mode="json"), "low": 100_000 if each.name == "annual_income" else each.low}
            for each in lender.spec.numeric
            if each.name != "open_accounts"
        ]
        numeric.append({"name": "rent", "theme": "income", "nullable": False})
        with copy_of("later", numeric=numeric) as world:
            assert replayed(world).equal == replayed(world).compared > 80


class TestNamed:
    """What is not as it was."""

    @pytest.mark.parametrize(
        ("number", "name"),
        [(SCORECARD, "model.json"), (SCORECARD, "outliers.npz"), (SCORECARD, "reasons.json"), (GBM, "gbm.txt"),
         (GBM, "model.json")],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["a bit", "cut", "gone"])
    def test_a_model_file(self, copied, number, name, how):
        path = copied.place.home / "store" / "models" / "lender.pd_model" / f"v{number}" / "files" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(bytes(data) if how == "a bit" else bytes(data[:-1]))
        found = replayed(copied)
        kind = {SCORECARD: (PLAIN, EDGES), GBM: (BOOSTED,)}[number]
        touched = sum(len(list(copied.log().of_period(day))) for day in kind)
        assert (found.different, found.equal) == (touched, found.compared - touched)
        (problem,) = problems(found)
        assert f"a file of lender.pd_model version {number} is {'missing' if how == 'gone' else 'broken'}" in problem
        assert str(path) in problem
        assert found.differing[0].rows() == [("all of it", "", problem)]
        assert found.differing[0].recorded == {}

    def test_a_version_that_was_replaced_as_a_whole(self, copied):
        """Files, hashes and record of the other model, all of it sound in itself."""
        versions = copied.place.home / "store" / "models" / "lender.pd_model"
        record = json.loads((versions / "v2" / "version.json").read_bytes())
        (versions / "v2" / "files").rename(versions / "v1" / "files-of-2")
        (versions / "v1" / "files").rename(versions / "v1" / "gone")
        (versions / "v1" / "files-of-2").rename(versions / "v1" / "files")
        (versions / "v1" / "version.json").write_bytes(canonical_json({**record, "version": 1}))
        found = replayed(copied, PLAIN)
        (problem,) = problems(found)
        assert found.equal == 0
        assert "lender.pd_model version 1 has SHA-256" in problem
        assert "and decided was with" in problem

    @pytest.mark.parametrize(
        ("change", "row"),
        [
            (lambda body: body["result"].update(pd=one_bit_more(body["result"]["pd"])), "result.pd"),
            (lambda body: body["result"].update(points=body["result"]["points"] + 1), "result.points"),
            (lambda body: body["result"].update(decision="accept", rule="below_cut"), "result.decision"),
            (lambda body: body["result"]["reasons"][0].update(text="Because."), "result.reasons"),
            (lambda body: body["result"].update(reasons=[]), "result.reasons"),
            (lambda body: body["features"].update(annual_income=(1e5).hex()), "features.annual_income"),
            (lambda body: body["flags"].update(outlier=None), "flags.outlier"),
            (lambda body: body["payload"].update(annual_income=90_000), "payload_sha256"),
            (lambda body: body.update(payload_sha256="00" * 32), "payload_sha256"),
        ],
        ids=["last bit", "points", "decision", "text", "no reason", "feature", "outlier", "payload", "digest"],
    )  # fmt: skip
    def test_whatever_else_is_recorded_than_comes_out(self, copied, change, row):
        entry = altered(copied, change, at=2)  # a rejection
        beside = list(copied.log().of_period(EDGES))[:3]
        found = Replayer(copied.log(), copied.registry).replay([*beside, entry])
        assert (found.compared, found.different) == (4, 1)
        (difference,) = found.differing
        assert difference.decision_id == "forged-2"
        names = [name for name, _, _ in difference.rows()]
        assert row in names
        recorded = {name: was for name, was, _ in difference.rows()}
        made = {name: now for name, _, now in difference.rows()}
        assert recorded[row] != made[row]

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("policy", {"policy": {"accept_below": 0.3, "reject_from": 0.4}}),
            ("reasons", {"reasons_version": "0123456789abcdef"}),
            ("features", {"feature_version": "0123456789abcdef"}),
        ],
    )
    def test_a_context_that_today_cannot_be_had(self, copied, name, change):
        log = copied.log()
        entry = next(iter(log.of_period(PLAIN)))
        context = dict(log.context_of(entry.body["context_sha256"]))
        for key, value in change.items():
            context[key] = {**context[key], **value} if isinstance(value, dict) else value
        body = {key: value for key, value in entry.body.items() if key != "context_sha256"}
        log.append([{**body, "decision_id": "other"}], log.context(context))
        found = Replayer(log, copied.registry).replay([log.get("other")])
        assert found.different == 1
        assert f"the {name} are version" in found.differing[0].problem
        assert "decide with the release of this package" in found.differing[0].problem

    def test_a_version_that_nobody_has_any_more(self, copied):
        (copied.place.home / "store" / "models" / "lender.pd_model" / "v2").rename(copied.home / "away")
        found = replayed(copied)
        assert found.different == len(list(copied.log().of_period(BOOSTED)))
        assert "has no version 2" in found.differing[0].problem

    def test_one_that_cannot_be_made_again_hides_no_other(self, copied, monkeypatch):
        """A payload that somebody put a protected attribute into stops its own decision alone."""
        forged = altered(copied, lambda body: body["payload"].update(unheard_of=1), day=BOOSTED)
        log = copied.log()
        replayer = Replayer(log, copied.registry)
        decider = replayer.decider(forged.body["context_sha256"])
        decider.spec = copied.spec.model_copy(update={"protected": (*copied.spec.protected, _named("unheard_of"))})
        found = replayer.replay([*log.of_period(BOOSTED)])
        assert found.different == 1
        assert found.differing[0].decision_id == "forged-0"
        assert "protected attribute(s) 'unheard_of'" in found.differing[0].problem

    def test_a_model_whose_trees_and_reasons_part_ways(self, copied, monkeypatch):
        def contradicts(self: Gbm, features: Any) -> Any:
            raise ArithmeticError("row 0: the contributions miss the margin by 0.5 log-odds")

        monkeypatch.setattr(Gbm, "score", contradicts)
        found = replayed(copied, BOOSTED)
        assert found.equal == 0
        assert "the model contradicts itself: row 0" in found.differing[0].problem

    def test_where_all_differ_only_the_first_are_kept_in_full(self, copied, monkeypatch):
        monkeypatch.setattr(replaying, "DETAILED", 3)
        (copied.place.home / "store" / "models" / "lender.pd_model" / "v1" / "files" / "model.json").unlink()
        found = replayed(copied, PLAIN)
        assert found.compared == found.different > 3
        assert len(found.differing) == 3
        assert found.equal == 0


def _named(name: str) -> Any:
    from mlops_assets.credit_risk.spec import Protected

    return Protected(name=name)


class TestDifference:
    def test_it_tells_names_and_both_sides(self):
        one: Mapping[str, Any] = {"payload_sha256": "aa", "features": {"a": "1", "b": None}, "flags": {}, "result": {}}
        other = {**one, "features": {"a": "2", "c": "3"}, "payload_sha256": "bb"}
        rows: Sequence[tuple[str, str, str]] = Difference("d", one, other).rows()
        assert rows == [("payload_sha256", "aa", "bb"), ("features.a", "1", "2"), ("features.c", "None", "3")]
        assert Difference("d", one, one).rows() == []
        assert set(COMPARED) == set(one)
