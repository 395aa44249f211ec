"""A decision is the same whoever asks for it and whatever is decided beside it; nobody is lost or told an untruth."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.credit_risk.deciding import Decided, Decider, decision_id
from mlops_assets.credit_risk.models import Scores
from mlops_assets.credit_risk.policy import RULE_NAMES, RULES
from mlops_assets.credit_risk.reasons import ReasonTable, thin_files
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json, sha256_hex
from mlops_assets.foundation.snapshots import SnapshotStore
from tests.credit_risk.decided_world import (
    EDGES,
    GBM,
    GOOD,
    KINDS,
    PLAIN,
    RISKY,
    SCORECARD,
    World,
    edge_rows,
    records_of,
    request_of,
    texts,
)

MODELS = pytest.mark.parametrize("number", [SCORECARD, GBM], ids=["scorecard", "gbm"])

NUMBERS = [
    0, 0.0, -0.0, -1, 1.5, 42_000, 42_000.0, 10**30, 10**400, 1e300, 5e-324, True, False, None, "", "  ", "12", " 12 ",
    "+12", "-0", "1e3", "1e999", "-1e999", "1e-999", "nan", "inf", "-Infinity", "N/A", "1,5", "1.234,56", "0x1A",
    "1_000", "\u0661\u0662", "\uff11\uff12", "12\n", "1\x00", [1], {"a": 1}, "9" * 400, -7, -8, -9, "-9", -9.0,
]  # fmt: skip
TEXTS = [
    "car", " car ", "CAR", "", None, "yacht", 1, 1.0, 1.5, True, ["car"], {"a": "b"}, "x" * 201, "=1", "@x", "a\nb",
    "\u200b", "\ufeffcar", "café", "cafe\u0301", "<i>", "javascript:1", 10**30, "\x00", "\U0001f600",
]  # fmt: skip
TIMES = [
    f"{EDGES}T10:00:00Z", f"{EDGES} 10:00", EDGES, EDGES[:7], "2024", f"{EDGES}T10", f"{EDGES}T10:00:00+02:00",
    f"{EDGES}T23:30:00-05:00", f"{EDGES}T10:00:00.123456789Z", "20240902T100000", "today", "now", "soon", "", None,
    1725271200, 1725271200.5, "1725271200", "9999-12-31T00:00:00Z", "0001-01-01", "2024-02-30", f"{EDGES}T24:00:00",
    f"{EDGES}T23:59:60Z", f" {EDGES} ", [1], True,
]  # fmt: skip
POOLS: Mapping[str, Sequence[Any]] = {
    "application_id": ["x", " x ", 7, 7.0, 7.5, None, "", "=x", "x" * 300, "Å", [7], True, "a\tb"],
    "applicant_id": ["p", None, "", 5, "<b>", ["p"]],
    "applied_at": TIMES,
    **{
        name: TEXTS if isinstance(value, str) else NUMBERS
        for name, value in GOOD.items()
        if name not in ("application_id", "applicant_id", "applied_at")
    },
}


@pytest.fixture(scope="module")
def deciders(lender: World) -> Mapping[int, Decider]:
    return {number: lender.decider(number) for number in (SCORECARD, GBM)}


def bytes_of(records: Sequence[Mapping[str, Any]]) -> list[bytes]:
    return [canonical_json(record) for record in records]


def one_by_one(decider: Decider, payloads: Sequence[str], **over: Any) -> list[bytes]:
    sources = over.pop("sources", [None] * len(payloads))
    return [
        canonical_json(records_of(decider, request_of([text], sources=[source], **over))[0])
        for text, source in zip(payloads, sources, strict=True)
    ]


def rows_in_lines(count: int) -> list[dict[str, Any]]:
    return [{"file": "f.csv", "row": row} for row in range(count)]


class TestSameBytes:
    @MODELS
    def test_a_row_of_any_kind_alone_is_as_in_the_batch(self, deciders, number):
        payloads, sources = texts(edge_rows()), rows_in_lines(len(KINDS))
        whole = bytes_of(records_of(deciders[number], request_of(payloads, sources=sources)))
        assert one_by_one(deciders[number], payloads, sources=sources) == whole

    @MODELS
    def test_neither_order_nor_company_matters(self, deciders, number):
        payloads, sources = texts(edge_rows()), rows_in_lines(len(KINDS))
        whole = bytes_of(records_of(deciders[number], request_of(payloads, sources=sources)))
        for seed in range(5):
            order = list(range(len(payloads)))
            random.Random(seed).shuffle(order)
            order = order[: random.Random(-seed).randint(2, len(order))]
            request = request_of([payloads[at] for at in order], sources=[sources[at] for at in order])
            assert bytes_of(records_of(deciders[number], request)) == [whole[at] for at in order]

    @MODELS
    def test_four_thousand_rows_are_as_their_parts(self, deciders, number):
        # More than what LightGBM and the forest work on at a time.
        draws = np.random.default_rng(3)
        values = np.column_stack([draws.uniform(1e4, 2e5, 4_200), draws.uniform(0, 2, 4_200)]).tolist()
        rows = [
            {**GOOD, "application_id": f"m{at}", "annual_income": income, "debt_to_income": debts}
            for at, (income, debts) in enumerate(values)
        ]
        payloads = texts(rows)
        whole = bytes_of(records_of(deciders[number], request_of(payloads)))
        for first, last in ((0, 1), (1, 8), (255, 256), (254, 511), (4_090, 4_200)):
            assert bytes_of(records_of(deciders[number], request_of(payloads[first:last]))) == whole[first:last]

    @MODELS
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_whatever_a_row_holds(self, deciders, number, data):
        rows = data.draw(
            st.lists(st.fixed_dictionaries({}, optional={n: st.sampled_from(v) for n, v in POOLS.items()}), max_size=6)
        )
        rows = [{**GOOD, "application_id": f"h{at}", **row} for at, row in enumerate(rows)]
        ids = [str(row["application_id"]).strip() for row in rows]
        # One id with two contents is no matter of a single row; see `TestAcrossRows`.
        rows = [row for at, row in enumerate(rows) if ids[at] not in ids[:at]]
        payloads = texts(rows)
        sources = rows_in_lines(len(rows))
        decided = bytes_of(records_of(deciders[number], request_of(payloads, sources=sources)))
        assert one_by_one(deciders[number], payloads, sources=sources) == decided

    def test_numbers_and_their_texts_are_one_content(self, deciders):
        as_text = {name: str(value) for name, value in GOOD.items()}
        payloads = texts([GOOD, {**as_text, "application_id": "B"}])
        one, other = records_of(deciders[GBM], request_of(payloads))
        assert one["features"] == other["features"]
        assert one["result"] == other["result"]
        assert one["payload_sha256"] != other["payload_sha256"]

    def test_a_time_without_a_zone_is_utc_whatever_stands_before_it(self, deciders):
        # 00:30 of the next day in UTC: it would be of this day if it took the zone of the row before.
        rows = [
            {**GOOD, "application_id": "zoned", "applied_at": f"{EDGES}T10:00:00+02:00"},
            {**GOOD, "application_id": "naive", "applied_at": "2024-09-03 00:30"},
        ]
        batch = records_of(deciders[SCORECARD], request_of(texts(rows)))
        assert [record["result"]["rule"] for record in batch] == ["below_cut", "quarantined"]
        assert batch[1]["flags"]["broken"][0]["rule"] == "applied_at_not_after"

    def test_a_batch_with_nothing_to_score(self, deciders):
        rows = [{**GOOD, "application_id": f"q{at}", "loan_amount": None} for at in range(3)]
        decided = deciders[GBM].decide(request_of(texts(rows)))
        assert decided.decision == ["refer"] * 3
        assert len(decided.scores.pd) == 0
        assert [each["features"] for each in deciders[GBM].records(decided)] == [{}] * 3

    def test_nobody_asks(self, deciders):
        decided = deciders[GBM].decide(request_of([]))
        assert len(decided) == 0
        assert list(deciders[GBM].records(decided)) == []


class TestWritten:
    """What the log gets is made as text; here it is made value by value."""

    def expected(self, decider: Decider, decided: Decided, at: int, more: Mapping[str, Any]) -> dict[str, Any]:
        request, place = decided.request, int(decided.scored[at])
        payload = json.loads(request.payloads[at])
        digest = sha256_hex(request.payloads[at].encode())
        rule = RULE_NAMES[decided.rule[at]]
        result = {"pd": None, "margin": None, "points": None, "reasons": []}
        features, outlier = {}, None
        if place >= 0:
            values, scores, unusual = decided.features.iloc[place], decided.scores, decided.unusual
            features = {
                name: None if pd.isna(value) else float(value).hex() if isinstance(value, float) else value
                for name, value in values.items()
            }
            outlier = {
                "score": float(unusual.score[place]).hex(), "flagged": bool(unusual.flagged[place]),
                "main_feature": unusual.main_feature[place],
            }  # fmt: skip
            result = {
                "pd": float(scores.pd[place]).hex(), "margin": float(scores.margin[place]).hex(),
                "points": None if scores.points is None else int(scores.points[place]),
                "reasons": list(decided.reasons.told(decider.table))[place],
            }  # fmt: skip
        return {
            "decision_id": decision_id(decider.spec.name, request.ids[at], digest), "application_id": request.ids[at],
            "period": request.period, "batch_id": request.batch_id, "channel": request.channel,
            "received_at": request.received_at, "until": request.until.isoformat(), "payload": payload,
            "payload_sha256": digest, "source": request.sources[at] if request.sources else None,
            "flags": {
                "broken": list(decided.broken.get(at, ())), "refused": list(request.refused.get(at, ())),
                "outlier": outlier,
            },
            "features": features,
            "result": {**result, "decision": RULES[rule][0], "rule": rule},
            **more,
        }  # fmt: skip

    @MODELS
    @pytest.mark.parametrize("channel", ["batch", "api"])
    def test_the_text_is_the_canonical_json_of_the_record(self, deciders, number, channel):
        decider, payloads = deciders[number], texts(edge_rows())
        sources = [{"file": 'odd "name" %s ü.csv', "row": row} for row in range(len(payloads))]
        over = {"sources": sources} if channel == "batch" else {"channel": "api", "batch_id": None}
        decided = decider.decide(request_of(payloads, refused={3: ["r-1", "r-2"]}, **over))
        more = {"context_sha256": "c0", "decided_at": "2024-09-03T05:00:00+00:00"}
        records, written = list(decider.records(decided)), list(decider.written(decided, *more.values()))
        for at in range(len(payloads)):
            expected = self.expected(decider, decided, at, more)
            assert written[at].text == canonical_json(expected).decode()
            assert records[at] == {name: value for name, value in expected.items() if name not in more}
            assert written[at].decision_id == expected["decision_id"]
            assert written[at].application_id == expected["application_id"]
            names = ("period", "channel", "batch_id")
            found_by = {name: expected[name] for name in names if expected[name] is not None}
            found_by |= {name: expected["result"][name] for name in ("decision", "rule")}
            assert written[at].found_by == found_by

    def test_a_text_that_is_no_object_is_not_written(self, deciders):
        (text,) = texts([GOOD])
        for broken in (f"{text} ", f'{text},"x":1', "[1]", "7", "", text[:-1], f"{text}{text}"):
            with pytest.raises(ValueError, match=r"a payload is no JSON object|Expecting"):
                deciders[SCORECARD].decide(request_of([text, broken]))

    def test_it_is_written_for_the_context_that_it_names(self, copied, deciders):
        log = copied.log()
        context = next(iter(log.of_period(PLAIN))).body["context_sha256"]
        decided = deciders[SCORECARD].decide(request_of(texts([{**GOOD, "application_id": "new"}])))
        with pytest.raises(ValueError, match="was written for context c0"):
            log.append(deciders[SCORECARD].written(decided, "c0", "2024-09-03T05:00:00+00:00"), context)
        assert log.append(deciders[SCORECARD].written(decided, context, "2024-09-03T05:00:00+00:00"), context) == 1
        (entry,) = log.find("new")
        assert entry.intact
        assert canonical_json(entry.body).decode() == entry.text
        assert log.verify() == []


class TestEveryRow:
    @MODELS
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_kind_of_row_is_decided_by_its_rule(self, deciders, number, kind):
        changes, rule = KINDS[kind]
        (record,) = records_of(deciders[number], request_of(texts([{**GOOD, **changes}])))
        result = record["result"]
        assert result["decision"] == RULES[result["rule"]][0]
        if rule:
            assert result["rule"] == rule
        else:
            assert result["rule"] in ("below_cut", "near_cut", "above_cut")
        if result["rule"] == "quarantined":
            assert (result["pd"], result["margin"], result["points"], result["reasons"]) == (None, None, None, [])
            assert record["features"] == {}
            assert record["flags"]["outlier"] is None
            assert record["flags"]["broken"]
            assert set(record["flags"]["broken"][0]) == {"rule", "column", "value", "bound"}
        else:
            assert 0 < float.fromhex(result["pd"]) < 1
            assert set(record["features"]) == set(deciders[number].model.schema.names)
            assert (result["points"] is None) == (number == GBM)

    def test_every_decision_occurs(self, deciders):
        for decider in deciders.values():
            rules = [record["result"]["rule"] for record in records_of(decider, request_of(texts(edge_rows())))]
            assert {RULES[rule][0] for rule in rules} == {"accept", "refer", "reject"}

    @MODELS
    def test_a_row_unlike_all_others_goes_to_a_human(self, lender, deciders, number):
        decider = deciders[number]
        snapshots = SnapshotStore(lender.resources["store"].path("snapshots"))
        seen = snapshots.load(lender.version(number).tags["training_set"]).read("train")
        frame = decider.model.schema.matrix(seen)
        odd = int(decider.outliers.score(frame).score.argmax())
        raw = {name: None if pd.isna(value) else value for name, value in frame.iloc[odd].items()}
        (record,) = records_of(decider, request_of(texts([{**GOOD, **raw}])))
        assert record["result"]["rule"] in ("outlier", "insufficient_file")
        assert record["flags"]["outlier"]["flagged"] is True
        assert record["flags"]["outlier"]["main_feature"] in decider.model.schema.names
        assert float.fromhex(record["flags"]["outlier"]["score"]) > 0.5

    @pytest.mark.parametrize("name", [*GOOD, "all of it"])
    def test_a_value_that_the_payload_does_not_even_name_is_missing(self, deciders, name):
        rows = [GOOD, {key: value for key, value in GOOD.items() if key != name}]
        if name == "all of it":
            rows[1] = {}
        absent = records_of(deciders[SCORECARD], request_of(texts(rows[1:])))[0]
        null = records_of(deciders[SCORECARD], request_of(texts([{**GOOD, name: None}])))[0]
        if name == "all of it":
            assert absent["result"]["rule"] == "quarantined"
            assert {each["rule"] for each in absent["flags"]["broken"]} == {"missing"}
        else:
            assert (absent["result"], absent["flags"]) == (null["result"], null["flags"])

    def test_a_line_that_no_one_could_cut_is_decided_alone_too(self, deciders):
        line = canonical_json({"unreadable_line": "[a line of 31 characters, not shown, sha256 00]"}).decode()
        source = {"file": "f.csv", "row": 9}
        alone = records_of(deciders[SCORECARD], request_of([line], sources=[source]))
        beside = records_of(deciders[SCORECARD], request_of([*texts([GOOD]), line], sources=[None, source]))[1:]
        assert bytes_of(alone) == bytes_of(beside)
        assert alone[0]["application_id"].startswith("row 9 of f.csv in ")
        assert alone[0]["result"]["decision"] == "refer"

    def test_rows_without_an_id_are_told_apart_by_file_and_row(self, deciders):
        row = {**GOOD, "application_id": None}
        places = [{"file": file, "row": number} for file in ("a.csv", "b.csv") for number in (3, 4)]
        made = records_of(deciders[SCORECARD], request_of(texts([row] * 4), sources=places))
        assert len({record["decision_id"] for record in made}) == 4
        assert len({record["application_id"] for record in made}) == 4

    def test_a_long_value_is_not_repeated_in_full(self, deciders):
        (record,) = records_of(deciders[SCORECARD], request_of(texts([{**GOOD, "purpose": "y" * 5_000}])))
        assert len(record["flags"]["broken"][0]["value"]) == 200


class TestIdentity:
    def test_the_name_of_a_decision_follows_from_system_application_and_content(self, deciders, lender):
        (text,) = texts([GOOD])
        (record,) = records_of(deciders[SCORECARD], request_of([text]))
        digest = sha256_hex(text.encode())
        assert record["payload_sha256"] == digest
        assert record["payload"] == GOOD
        assert record["decision_id"] == decision_id(lender.spec.name, "A", digest)
        assert record["decision_id"] == sha256_hex(canonical_json([lender.spec.name, "A", digest]))[:32]

    @given(system=st.text(), application=st.text(), digest=st.text())
    def test_no_two_things_share_a_name(self, system, application, digest):
        assert decision_id(system, application, digest) != decision_id(system + "x", application, digest)
        assert decision_id(system, application, digest) != decision_id(system, application + "x", digest)
        assert len(decision_id(system, application, digest)) == 32

    def test_model_and_moment_are_no_part_of_the_name(self, deciders):
        at = {"received_at": "2025-01-01T00:00:00+00:00", "channel": "api", "batch_id": None, "period": "2025-01-01"}
        (one,) = records_of(deciders[SCORECARD], request_of(texts([GOOD])))
        (other,) = records_of(deciders[GBM], request_of(texts([GOOD]), **at))
        assert one["decision_id"] == other["decision_id"]
        assert (other["channel"], other["batch_id"], other["period"]) == ("api", None, "2025-01-01")


class TestAcrossRows:
    def test_what_the_ingestion_refused_is_not_scored(self, deciders):
        rows = [{**GOOD, "application_id": f"r{at}"} for at in range(3)]
        request = request_of(texts(rows), refused={1: ["one_application_one_content"]})
        made = records_of(deciders[GBM], request)
        assert [record["result"]["rule"] for record in made] == ["below_cut", "quarantined", "below_cut"]
        assert made[1]["flags"] == {"broken": [], "refused": ["one_application_one_content"], "outlier": None}
        (alone,) = records_of(deciders[GBM], request_of(texts(rows[1:2]), refused={0: ["one_application_one_content"]}))
        assert canonical_json(alone) == canonical_json(made[1])

    def test_all_refused(self, deciders):
        made = records_of(deciders[GBM], request_of(texts([GOOD, GOOD]), refused={0: ["x"], 1: ["x"]}))
        assert [record["result"]["decision"] for record in made] == ["refer", "refer"]

    def test_an_exact_copy_has_the_name_of_the_first(self, deciders):
        made = records_of(deciders[GBM], request_of(texts([GOOD, GOOD])))
        assert made[0]["decision_id"] == made[1]["decision_id"]
        assert made[0]["result"]["decision"] == "accept"


class TestProtected:
    @MODELS
    @pytest.mark.parametrize("name", ["sex", "age", "origin"])
    @pytest.mark.parametrize("value", ["female", 33, None])
    def test_a_protected_attribute_in_a_raw_row_stops_everything(self, deciders, number, name, value):
        rows = [{**GOOD, "application_id": "a"}, {**GOOD, "application_id": "b", name: value}]
        with pytest.raises(UserError, match=rf"protected attribute\(s\) '{name}' .*leave them out"):
            deciders[number].decide(request_of(texts(rows)))

    @MODELS
    def test_whoever_the_person_is_the_decision_is_the_same(self, lender, deciders, number):
        """The flip test through the whole path: the attributes leave before the payload is made."""
        from mlops_assets.credit_risk.applications import payloads

        frames = [pd.DataFrame([{**row, "sex": sex, "age": age, "origin": origin} for row in edge_rows()], dtype=object)
                  for sex, age, origin in (("female", 19, "A"), ("male", 70, "C"), (None, None, None))]  # fmt: skip
        made = []
        for frame in frames:
            kept = frame.drop(columns=list(lender.spec.protected_names))
            made.append(bytes_of(records_of(deciders[number], request_of(payloads(kept)))))
        assert made[0] == made[1] == made[2]

    def test_a_model_that_uses_one_is_never_made_a_decider(self, lender, deciders):
        decider = deciders[SCORECARD]
        region = lender.spec.protected[0].model_copy(update={"name": "region"})
        spec = lender.spec.model_copy(update={"protected": (region,)})
        with pytest.raises(UserError, match=r"uses the protected attribute\(s\) 'region'"):
            Decider(spec, decider.model, decider.outliers, decider.policy, decider.table)

    def test_a_feature_without_a_sentence_is_never_decided_by(self, lender, deciders):
        decider = deciders[SCORECARD]
        table = ReasonTable({name: texts for name, texts in decider.table.themes.items() if name != "income"})
        with pytest.raises(UserError, match=r"no sentence can name the feature\(s\) 'annual_income'"):
            Decider(lender.spec, decider.model, decider.outliers, decider.policy, table)


def scored(decider: Decider, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], int, Decided]]:
    decided = decider.decide(request_of(texts(rows)))
    for at, record in enumerate(decider.records(decided)):
        if decided.scored[at] >= 0:
            yield record, int(decided.scored[at]), decided


class TestReasons:
    @MODELS
    def test_they_add_up_to_the_score(self, deciders, number):
        decider = deciders[number]
        rows = [*edge_rows(), *({**GOOD, **RISKY, "application_id": f"x{at}", "inquiries_6m": at} for at in range(7))]
        seen = 0
        for record, at, decided in scored(decider, rows):
            contributions = decided.scores.contributions[at]
            result = record["result"]
            if number == SCORECARD:
                average = decider.model.base + sum(card.baseline for card in decider.model.cards)
                assert result["points"] == average - contributions.sum()
            else:
                margin = float.fromhex(result["margin"])
                assert margin == pytest.approx(decider.model.base + contributions.sum(), abs=1e-6)
            by_theme: dict[str, float] = {}
            for feature, amount in zip(decider.model.schema.features, contributions, strict=True):
                by_theme[feature.theme] = by_theme.get(feature.theme, 0.0) + amount
            raised = sorted((amount for amount in by_theme.values() if amount > 0), reverse=True)
            told = [float.fromhex(reason["contribution"]) for reason in result["reasons"]]
            assert told == pytest.approx(raised[:4], abs=1e-9)
            assert told == pytest.approx([by_theme[reason["theme"]] for reason in result["reasons"]])
            for reason in result["reasons"]:
                behind = [decider.model.schema.names.index(name) for name in reason["features"]]
                assert behind
                assert {decider.model.schema.features[at].theme for at in behind} == {reason["theme"]}
                assert (contributions[behind] > 0).all()
            seen += 1
        assert seen > 15

    @MODELS
    def test_whoever_is_rejected_is_told_why_and_in_words_of_the_table(self, deciders, number):
        decider = deciders[number]
        (record,) = records_of(decider, request_of(texts([{**GOOD, **RISKY}])))
        reasons = record["result"]["reasons"]
        assert record["result"]["decision"] == "reject"
        assert 1 <= len(reasons) <= 4
        told = {text for texts in decider.table.themes.values() for text in texts.values()}
        assert {reason["text"] for reason in reasons} <= told
        assert [set(reason) for reason in reasons] == [{"theme", "text", "features", "contribution"}] * len(reasons)

    def test_missing_information_is_told_as_such(self, deciders):
        (record,) = records_of(deciders[GBM], request_of(texts([{**GOOD, "revolving_utilisation": None}])))
        by_theme = {reason["theme"]: reason["text"] for reason in record["result"]["reasons"]}
        assert by_theme["utilisation"] == "There is no credit line whose use we could assess."

    def test_fewer_are_told_where_the_policy_says_so(self, lender, deciders):
        decider = deciders[GBM]
        terse = Decider(lender.spec, decider.model, decider.outliers, replace(decider.policy, reasons=1), decider.table)
        request = request_of(texts([{**GOOD, **RISKY}]))
        (many,), (one,) = records_of(decider, request), records_of(terse, request)
        assert one["result"]["reasons"] == many["result"]["reasons"][:1]

    @pytest.mark.parametrize("off", [1e-3, float("nan"), float("inf")])
    def test_reasons_that_do_not_add_up_stop_the_run(self, lender, deciders, off):
        class Lying:
            kind, baseline = "scorecard", "nothing"
            schema = deciders[SCORECARD].model.schema

            def score(self, features: pd.DataFrame) -> Scores:
                honest = deciders[SCORECARD].model.score(features)
                return replace(honest, residual=np.array([0.0, off])[: len(features)])

        decider = deciders[SCORECARD]
        lying: Any = Lying()
        made = Decider(lender.spec, lying, decider.outliers, decider.policy, decider.table)
        with pytest.raises(UserError, match=r"contributions of \d of 2 rows do not add up.*nothing was decided"):
            made.decide(request_of(texts([GOOD, {**GOOD, "application_id": "B"}])))

    def test_a_rejection_without_a_reason_is_a_referral(self, lender, deciders):
        decider = deciders[SCORECARD]
        strict = Decider(
            lender.spec, decider.model, decider.outliers, replace(decider.policy, accept_below=0.0, reject_from=0.0),
            decider.table,
        )  # fmt: skip
        best = {**GOOD, "annual_income": 90_000, "home_ownership": "own", "debt_to_income": 0.05, "inquiries_6m": 0}
        made = records_of(strict, request_of(texts([best, {**GOOD, **RISKY, "application_id": "B"}])))
        rules = {bool(record["result"]["reasons"]): record["result"]["rule"] for record in made}
        assert rules[True] == "above_cut"
        assert rules.get(False, "no_reason") == "no_reason"


def test_a_file_is_thin_only_where_all_that_is_needed_is_missing_or_special(deciders):
    schema = deciders[SCORECARD].model.schema
    needed = ("revolving_utilisation", "months_since_delinquency")
    rows = pd.DataFrame([
        {**GOOD},
        {**GOOD, "revolving_utilisation": None},
        {**GOOD, "revolving_utilisation": None, "months_since_delinquency": 12},
        {**GOOD, "revolving_utilisation": None, "months_since_delinquency": -9},
    ])  # fmt: skip
    assert thin_files(schema.matrix(rows), schema, needed).tolist() == [False, True, False, True]
    assert thin_files(schema.matrix(rows), schema, ()).tolist() == [False] * 4


def test_records_can_be_written_and_read_without_loss(deciders):
    for record in records_of(deciders[GBM], request_of(texts(edge_rows()))):
        assert json.loads(canonical_json(record)) == record
