"""The model card says what was found, names what was not, escapes what it quotes, and is incomplete when it must be."""

import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.credit_risk import _card_page as html
from mlops_assets.credit_risk import bias, card, evaluation, explanations, judging, training
from mlops_assets.credit_risk.card import Written
from mlops_assets.credit_risk.policy import DecisionPolicy
from mlops_assets.credit_risk.reasons import ReasonTable
from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Spec
from mlops_assets.foundation import plots, reports
from mlops_assets.foundation.files import sha256_hex
from mlops_assets.foundation.registry import ModelVersion
from tests.credit_risk.small_loans import small_loans, small_spec

Evidence = dict[str, Any]
EVIL = '<script>alert("1")</script> & <b>'

SPEC = small_spec(
    description="Loans of a small world.",
    protected=[{"name": "sex"}],
    segments=["region"],
    policy={"accept_below": 0.25, "reject_from": 0.35},
)


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """Keep pictures: most tests write cards with the same ones, and drawing is what takes the time."""
    kept: dict[str, bytes] = {}

    def keeping(name: str, draw: Callable[..., bytes]) -> Callable[..., bytes]:
        def drawn(*args: Any, **named: Any) -> bytes:
            key = repr((name, args, sorted(named.items())))
            return kept[key] if key in kept else kept.setdefault(key, draw(*args, **named))

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for name in ("intervals", "bars", "agreement", "band", "over_time"):
            patch.setattr(plots, name, keeping(name, getattr(plots, name)))
        yield


@pytest.fixture(scope="module")
def stored() -> Evidence:
    """The evidence of a scorecard beside a champion, as the registry gives it back."""
    loans = small_loans(6_000)
    bounds = {"train": (0, 3_000), "calibrate": (3_000, 4_000), "test": (4_000, 6_000)}
    frames = {name: loans.iloc[a:b].reset_index(drop=True) for name, (a, b) in bounds.items()}
    policy = DecisionPolicy.of(SPEC)
    made = training.fit_scorecard(SPEC, frames["train"], frames["calibrate"])
    older = training.fit_scorecard(SPEC, frames["train"].iloc[:1_500], frames["calibrate"])
    measured = evaluation.measure(SPEC, frames, made, older, older, policy)
    gates = [*judging.quality_gates(SPEC, measured), *judging.comparison_gates(SPEC, measured.against)]
    sex = np.random.default_rng(1).choice(np.array(["female", "male"], dtype=object), len(frames["test"]))
    people = frames["test"][["application_id"]].assign(sex=sex)
    report = bias.report_of(SPEC, made, frames, people, policy)
    explained = explanations.explain_model(SPEC, made, ReasonTable.of(SPEC), frames, policy, resamples=1)
    found = {
        "evaluation": {
            **judging.evidence_of(SPEC, measured, gates),
            "training_set": "d4" * 32,
            "split": {},
            "champion": {"version": 2, "sha256": "9e" * 32},
        },
        "bias_report": {
            "gates": [gate.as_row() for gate in bias.gates(SPEC, report)],
            "bias": report.to_dict(),
        },
        "explanations": {
            "gates": [gate.as_row() for gate in explanations.gates(SPEC, explained)],
            "explanations": explained.to_dict(),
        },
    }
    read: Evidence = json.loads(json.dumps(found, allow_nan=False))
    return read


SPLIT: Evidence = {
    "as_of": "2024-09-08T00:00:00+00:00", "split": "time", "train_from": "2024-01-01T00:00:00",
    "calibrate_from": "2024-05-05T00:00:00", "test_from": "2024-06-15T00:00:00",
    "applications": 9_000, "not_matured": 1_234, "without_outcome": 1_700, "indeterminate": 5, "contradictory": 3,
    "too_early": 1, "disputed": 2, "left_out_same_person": 55, "left_out_copies": 0, "accepted_share": 0.78,
    "bad_outcomes": ["default"], "good_outcomes": ["paid"], "batches": 250, "batches_sha256": "ab" * 32,
}  # fmt: skip


def version_of(**tags: str) -> ModelVersion:
    known = {"trained_by": "ada", "trained_until": "2024-06-14T00:00:00+00:00", "run_id": "run-1", **tags}
    return ModelVersion(
        model="small.pd_model",
        version=3,
        sha256="1f" * 32,
        uri="nowhere",
        files={"model.json": "aa" * 32, "reasons.json": "cc" * 32},
        params={"kind": "scorecard", "schema_version": FeatureSchema.of(SPEC).version, "seed": 7, "settings": {"b": 1}},
        metrics={},
        parts={},
        tags={name: value for name, value in known.items() if value},
        created="2024-09-08T05:12:00.123456+00:00",
    )


@pytest.fixture
def evidence(stored: Evidence) -> Evidence:
    return copy.deepcopy(stored)


def write(root: Path, evidence: Evidence, *, spec: Spec = SPEC, split: Evidence = SPLIT, **tags: str) -> Written:
    return card.write(spec, version_of(**tags), evidence, split, root)


def page_of(root: Path, written: Written) -> str:
    return (root / reports.FOLDER / written.path).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Every tag and attribute of a page; complains of what is not closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.replace("\N{NO-BREAK SPACE}", " ")))


def section(page: str, title: str) -> str:
    found = re.search(rf"<section[^>]*><h2>\d+\. {re.escape(title)}</h2>(.*?)</section>", page, re.DOTALL)
    assert found is not None, title
    return found[1]


# ---- a complete card


def test_a_complete_card_passes(tmp_path: Path, evidence: Evidence) -> None:
    written = write(tmp_path, evidence)
    assert written.missing == ()
    gate = card.gate(written)
    assert (gate.gate, gate.status, gate.value, gate.bound) == ("model_card", "passed", 0.0, 0.0)
    assert "all 14 sections are complete" in gate.reason


def test_it_lies_where_its_hash_says(tmp_path: Path, evidence: Evidence) -> None:
    written = write(tmp_path, evidence)
    assert written.path == f"small/cards/v3-{written.sha256[:12]}.html"
    assert sha256_hex((tmp_path / reports.FOLDER / written.path).read_bytes()) == written.sha256


def test_equal_evidence_is_the_same_card_to_the_byte(tmp_path: Path, evidence: Evidence) -> None:
    one, other = write(tmp_path / "a", evidence), write(tmp_path / "b", copy.deepcopy(evidence))
    assert one == other
    assert page_of(tmp_path / "a", one) == page_of(tmp_path / "b", other)


def test_other_evidence_leaves_the_earlier_card_alone(tmp_path: Path, evidence: Evidence) -> None:
    one = write(tmp_path, evidence)
    before = page_of(tmp_path, one)
    evidence["evaluation"]["overfit"] = 0.0123
    other = write(tmp_path, evidence)
    assert other.path != one.path
    assert page_of(tmp_path, one) == before


def test_it_is_whole_markup_that_loads_and_runs_nothing(tmp_path: Path, evidence: Evidence) -> None:
    page = page_of(tmp_path, write(tmp_path, evidence))
    read = Reader(page)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "base"})
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes)
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/png;base64,")
        if "href" in attributes:
            assert tag == "a"
            assert str(attributes["href"]).startswith("#")
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page


def test_every_link_of_the_contents_leads_somewhere(tmp_path: Path, evidence: Evidence) -> None:
    read = Reader(page_of(tmp_path, write(tmp_path, evidence)))
    targets = [str(attributes["href"])[1:] for tag, attributes in read.tags if tag == "a"]
    assert len(targets) == 15
    assert targets == [attributes["id"] for tag, attributes in read.tags if tag == "section"]


def test_it_has_six_small_pictures_with_words_beside_them(tmp_path: Path, evidence: Evidence) -> None:
    read = Reader(page_of(tmp_path, write(tmp_path, evidence)))
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == 6
    for picture in pictures:
        data = base64.b64decode(str(picture["src"]).partition(",")[2])
        assert data.startswith(b"\x89PNG")
        assert len(data) <= 30_000
        assert picture["alt"]


def test_numbers_stand_where_they_are_looked_for(tmp_path: Path, evidence: Evidence) -> None:
    page = page_of(tmp_path, write(tmp_path, evidence))
    auc = evidence["evaluation"]["contestants"]["scorecard"]["auc"]
    assert f"{auc['value']:.4f} ({auc['low']:.4f} to {auc['high']:.4f})" in words_of(section(page, "Performance"))
    assert "1,234" in section(page, "Data")
    assert "78.0 % of the matured applications have an outcome" in words_of(section(page, "Data"))
    assert "team:credit-models" in section(page, "Owner and trainer")
    assert "PD 0.2500" in section(page, "Policy and profit")
    assert "Existing debts" in section(page, "Reasons")
    assert "1f" * 32 in section(page, "Versions and hashes")
    ratio = evidence["bias_report"]["bias"]["attributes"][0]["ratio"]["value"]
    assert f"{ratio:.4f}" in words_of(section(page, "Protected groups"))
    assert "blind to a change in how applications turn into defaults" in words_of(section(page, "Limits"))
    assert "86 days older than the training set" in words_of(section(page, "Limits"))
    assert "G1_incident" in section(page, "Monitoring and retraining")
    assert "9e" * 32 in section(page, "Versions and hashes")


def test_what_did_not_pass_stands_before_everything_else(tmp_path: Path, evidence: Evidence) -> None:
    gates = evidence["evaluation"]["gates"]
    gates.append({**gates[0], "status": "failed", "reason": "it is too low"})
    gates.append({**gates[0], "gate": "shadow", "status": "not_assessed", "reason": "nothing is live"})
    written = write(tmp_path, evidence)
    words = words_of(page_of(tmp_path, written))
    assert re.search("did not pass: [a-z_, ]*accuracy", words)
    assert words.index("it is too low") < words.index("1. Purpose and users")
    failed = sum(gate["status"] == "failed" for part in evidence.values() for gate in part["gates"])
    assert f"{failed} failed" in written.summary
    assert "Gate shadow: nothing is live" in written.unknown


def test_without_a_champion_the_card_says_so(tmp_path: Path, evidence: Evidence) -> None:
    evidence["evaluation"].update(champion=None, against=None)
    written = write(tmp_path, evidence)
    assert card.gate(written).status == "passed"
    assert any("comparison with a champion" in each for each in written.unknown)
    assert "There was no champion to compare with" in page_of(tmp_path, written)


def test_loans_without_times_need_no_span(tmp_path: Path, evidence: Evidence) -> None:
    untimed = {name: value for name, value in SPLIT.items() if not name.endswith("_from")}
    evidence["evaluation"]["gini_stability"]["score"] = unassessed("1 period")
    written = write(tmp_path, evidence, split={**untimed, "split": "stratified"}, trained_until=untimed["as_of"])
    assert card.gate(written).status == "passed"
    page = page_of(tmp_path, written)
    assert "at random within good and bad, by person" in page
    assert "older than the training set" not in page
    assert any("gini stability over months: 1 period" in each for each in written.unknown)


# ---- incomplete cards


def unassessed(reason: str) -> Evidence:
    return {"value": None, "low": None, "high": None, "n": 3, "status": "not_assessed", "reason": reason}


def without(part: str, *names: str) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        inner = (
            evidence[part]
            if part == "evaluation"
            else next(value for name, value in evidence[part].items() if name != "gates")
        )
        for name in names:
            del inner[name]

    return change


def unknown_metrics(evidence: Evidence) -> None:
    evidence["evaluation"]["metrics"]["auc"] = unassessed("3 rows")


def unknown_calibration(evidence: Evidence) -> None:
    evidence["evaluation"]["metrics"]["calibration_error"] = unassessed("3 rows")
    evidence["evaluation"]["grades"] = []


def unknown_stability(evidence: Evidence) -> None:
    evidence["evaluation"]["gini_stability"]["score"] = unassessed("one month")
    evidence["evaluation"]["train_psi"] = unassessed("3 rows")


def unknown_group(evidence: Evidence) -> None:
    evidence["bias_report"]["bias"]["attributes"][0].update(
        status="not_assessed", reason="every value is unknown", ratio=unassessed("every value is unknown")
    )


def unknown_segments(evidence: Evidence) -> None:
    for row in evidence["evaluation"]["segments"]["region"]:
        row.update(status="not_assessed", reason="3 rows")


def unknown_profit(evidence: Evidence) -> None:
    evidence["evaluation"]["profit"] = {"best_cut": unassessed("3 rows"), "curve": []}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(without("evaluation", "rows"), "Data: the number of loans to be judged on", id="no counts"),
        pytest.param(unknown_metrics, "Performance: AUC out of time: 3 rows", id="no accuracy"),
        pytest.param(without("evaluation", "metrics", "contestants"), "Performance: AUC", id="no metrics"),
        pytest.param(unknown_calibration, "Calibration: calibration, in bins or by grade", id="no calibration"),
        pytest.param(unknown_stability, "Stability over time: stability", id="no stability"),
        pytest.param(without("evaluation", "segments"), "Segments: the segment region", id="no segments"),
        pytest.param(unknown_segments, "Segments: segments: none is large enough", id="tiny segments"),
        pytest.param(without("bias_report", "attributes"), "Protected groups: protected groups", id="no bias report"),
        pytest.param(unknown_group, "Protected groups: sex: every value is unknown", id="unknown groups"),
        pytest.param(without("explanations", "importance"), "Features: how much each feature", id="no importance"),
        pytest.param(without("explanations", "additivity"), "Reasons: whether reasons add up", id="no additivity"),
        pytest.param(without("explanations", "told"), "Reasons: which reasons are told", id="no reasons"),
        pytest.param(unknown_profit, "Policy and profit: what a cut-off earns: 3 rows", id="no profit"),
    ],
)
def test_a_section_without_what_it_is_for_makes_the_card_incomplete(
    tmp_path: Path, evidence: Evidence, change: Callable[[Evidence], None], told: str
) -> None:
    change(evidence)
    written = write(tmp_path, evidence)
    gate = card.gate(written)
    assert gate.status == "failed"
    assert gate.value == len(written.missing) >= 1
    assert told in gate.reason
    assert "Missing:" in page_of(tmp_path, written)
    assert "Missing:" in written.summary


@pytest.mark.parametrize(
    ("split", "tags", "spec", "told"),
    [
        pytest.param({"as_of": None}, {}, {}, "Data: as of when", id="no date"),
        pytest.param({"test_from": None}, {}, {}, "Data: from when on loans are judged on", id="no span"),
        pytest.param({"not_matured": None}, {}, {}, "Data: how many applications are not matured", id="not counted"),
        pytest.param({}, {"trained_by": ""}, {}, "Owner and trainer: who trained the version", id="no trainer"),
        pytest.param({}, {}, {"description": " "}, "Purpose and users: what the model is for", id="no purpose"),
        pytest.param({}, {}, {"segments": ["purpose"]}, "Segments: the segment purpose", id="another segment"),
    ],
)
def test_a_card_without_its_frame_is_incomplete(
    tmp_path: Path, evidence: Evidence, split: Evidence, tags: dict[str, str], spec: Evidence, told: str
) -> None:
    changed = SPEC.model_copy(update=spec)
    written = write(tmp_path, evidence, spec=changed, split={**SPLIT, **split}, **tags)
    assert card.gate(written).status == "failed"
    assert told in card.gate(written).reason


def test_features_that_have_changed_since_make_the_card_incomplete(tmp_path: Path, evidence: Evidence) -> None:
    other = SPEC.model_copy(update={"categorical": SPEC.categorical[:1], "segments": ("region",)})
    assert "the spec now has" in card.gate(write(tmp_path, evidence, spec=other)).reason


def test_no_evidence_at_all_is_a_card_that_says_so(tmp_path: Path) -> None:
    written = card.write(SPEC, version_of(), {}, {}, tmp_path)
    assert card.gate(written).status == "failed"
    assert len(written.missing) >= 10
    Reader(page_of(tmp_path, written))
    assert "No gate has been asked" in page_of(tmp_path, written)


def test_a_waived_attribute_is_named_and_no_gap(tmp_path: Path, evidence: Evidence) -> None:
    unknown_group(evidence)
    waived = small_spec(**{**SPEC.model_dump(include={"description"}), "protected": [{"name": "sex"}],
                           "segments": ["region"], "policy": {"accept_below": 0.25, "reject_from": 0.35},
                           "gates": {"waived_groups": {"sex": "may not be collected here"}}})  # fmt: skip
    written = write(tmp_path, evidence, spec=waived)
    assert card.gate(written).status == "passed"
    assert any("sex (may not be collected here)" in each for each in written.unknown)
    assert "may not be collected here" in section(page_of(tmp_path, written), "Protected groups")


def test_what_is_not_assessed_is_listed_at_the_end(tmp_path: Path, evidence: Evidence) -> None:
    evidence["evaluation"]["metrics"]["ks"] = unassessed("the reason of it")
    evidence["evaluation"]["gini_stability"]["left_out"] = {"2024-07": "12 rows"}
    evidence["bias_report"]["bias"]["attributes"][0]["groups"][0]["approval_ratio"] = unassessed("7 applications")
    written = write(tmp_path, evidence)
    last = words_of(section(page_of(tmp_path, written), "What is not assessed"))
    for told in ("the reason of it", "gini of 2024-07: 12 rows", "7 applications"):
        assert told in last
    assert card.gate(written).status == "passed"
    assert f"{len(written.unknown)} things are named as not assessed" in card.gate(written).reason


# ---- what is quoted


def spoiled(value: Any) -> Any:
    """Return evidence in which every text that is not a status is an attack."""
    if isinstance(value, dict):
        return {
            (EVIL if name in {"scorecard", "2024-06"} else name): (
                inner if name in {"status", "split", "gate"} else spoiled(inner)
            )
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [spoiled(inner) for inner in value]
    return EVIL if isinstance(value, str) else value


def test_nothing_that_is_quoted_becomes_markup(tmp_path: Path, evidence: Evidence) -> None:
    spec = SPEC.model_copy(
        update={
            "description": EVIL,
            "themes": {name: theme.model_copy(update={"sentence": EVIL}) for name, theme in SPEC.themes.items()},
            "numeric": tuple(each.model_copy(update={"label": EVIL}) for each in SPEC.numeric),
        }
    )
    split = {name: EVIL if isinstance(value, str) and name != "split" else value for name, value in SPLIT.items()}
    written = write(tmp_path, spoiled(evidence), spec=spec, split=split, trained_by=EVIL, run_id=EVIL)
    page = page_of(tmp_path, written)
    assert "<script" not in page
    assert "<b>" not in page.replace("<b>", "", page.count('<div class="tile">'))
    assert page.count("&lt;script&gt;") > 20
    Reader(page)


def test_a_summary_is_text_alone(tmp_path: Path, evidence: Evidence) -> None:
    evidence["bias_report"]["bias"]["attributes"][0]["lowest"] = "[a](javascript:b) | `c` <i>"
    summary = write(tmp_path, evidence).summary
    assert r"\[a\](javascript:b) \| \`c\` \<i\>" in summary
    assert re.search(r"(?<!\\)<", summary) is None


# ---- markup


def test_text_is_escaped_once_and_markup_never() -> None:
    assert html.text('<a href="x">') == "&lt;a href=&quot;x&quot;&gt;"
    assert html.text(html.text("<")) == "&lt;"
    cell = html.table({"a": "a"}, [{"a": html.chip("passed")}])
    assert '<span class="chip passed">passed</span>' in cell


@pytest.mark.parametrize(
    ("values", "right"),
    [
        pytest.param([1, 2.5, None], True, id="numbers"),
        pytest.param(["1.2 %", "–"], True, id="percentages"),
        pytest.param(["0.123", "-4"], True, id="written numbers"),
        pytest.param(["2024-01"], False, id="months"),
        pytest.param(["1", "portfolio"], False, id="words among them"),
        pytest.param([None, "", "–"], False, id="nothing"),
        pytest.param([True], False, id="truth"),
    ],
)
def test_numbers_are_set_to_the_right(values: list[Any], right: bool) -> None:
    assert ('<td class="n">' in html.table({"a": "a"}, [{"a": value} for value in values])) == right


def cells(table: str) -> Iterator[str]:
    yield from re.findall(r"<td[^>]*>(.*?)</td>", table)


def test_missing_values_are_a_dash() -> None:
    assert list(cells(html.table({"a": "a", "b": "b"}, [{"a": None}, {"a": 1_234.5678, "b": 5_000}]))) == [
        "–", "–", "1235", "5,000",
    ]  # fmt: skip


def test_a_table_of_nothing_is_nothing() -> None:
    assert html.table({"a": "a"}, []) == ""
    assert html.listed([]) == ""
