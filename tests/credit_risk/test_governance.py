"""Nothing serves that nobody else approved: what people may decide, from the launchpad and the command line alike."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from mlops_assets.cli import main
from mlops_assets.credit_risk import incidents
from mlops_assets.credit_risk.governance import governance_jobs
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.registry import ChampionRecord
from tests.credit_risk.ran_world import (
    NAME,
    OFFICER,
    RAW,
    TRAINED,
    TRAINER,
    Bank,
    bank_folder,
    failure,
    opened,
    proposed,
    ran,
    ran_copy,
)

__all__ = ["bank_folder", "proposed", "ran", "ran_copy"]

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

WHY = "the card is read"
# Ways to write the trainer's name, among them other cases, spaces, widths, and signs that nobody sees.
AS_TRAINER = ("grace", "GRACE", "  Grace ", "gra\u200bce", "\uff47\uff52\uff41\uff43\uff45", "grace\t", "\u2060grace\n")


@pytest.fixture(scope="module")
def waiting(bank_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    """A bank with a proposal that nobody ever gets approved."""
    home = tmp_path_factory.mktemp("waiting") / "bank"
    shutil.copytree(bank_folder / "proposed", home)
    with opened(home) as bank:
        yield bank


def candidate(bank: Bank) -> int:
    put = bank.history.open_proposal()
    assert put is not None
    return put.record.candidate


def refused(bank: Bank, **config: Any) -> str:
    """Try to approve from the launchpad and by the function of the command line; both say the same and move nothing."""
    before = bank.serving(), len(bank.history.records())
    with pytest.raises(UserError) as caught:
        bank.history.approve(config["version"], config["by"], config["reason"])
    told = failure(bank.launch("approve", **config))
    assert str(caught.value) in told
    assert (bank.serving(), len(bank.history.records())) == before
    return str(caught.value)


# --- Who may approve ---


def test_a_candidate_that_passed_every_gate_serves_nobody(waiting: Bank) -> None:
    (record,) = waiting.history.records()
    assert (record.verdict, record.trained_by, record.version, record.to_version) == ("proposed", TRAINER, None, None)
    assert waiting.serving() is None
    told = failure(waiting.materialize("decisions", period=TRAINED))
    assert f"{NAME}/champion: there is no champion yet" in told
    assert f"mlops-assets approve {NAME} --version V" in told
    assert waiting.log.head().number == 0


@pytest.mark.parametrize("by", AS_TRAINER)
def test_whoever_trained_it_cannot_approve_it_however_the_name_is_written(waiting: Bank, by: str) -> None:
    told = refused(waiting, version=candidate(waiting), by=by, reason=WHY)
    assert "grace trained version" in told
    assert "whoever approves it must be somebody else" in told


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"by": ""}, "the name of who decides is empty"),
        ({"by": " \u200b\t"}, "the name of who decides is empty"),
        ({"reason": "  "}, "the reason is empty"),
        ({"version": 99}, "version 99 was never proposed"),
        ({"version": 0}, "version 0 was never proposed"),
    ],
)
def test_an_approval_names_who_why_and_what_was_proposed(waiting: Bank, config: dict[str, Any], told: str) -> None:
    assert told in refused(waiting, **{"version": candidate(waiting), "by": OFFICER, "reason": WHY, **config})


def test_the_candidate_that_lost_was_never_proposed(waiting: Bank) -> None:
    (other,) = {each.version for each in waiting.registry.versions(waiting.history.model)} - {candidate(waiting)}
    assert f"version {other} was never proposed" in refused(waiting, version=other, by=OFFICER, reason=WHY)


def test_the_launchpad_asks_for_name_and_reason(waiting: Bank) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"reason"):
        waiting.launch("approve", version=1, by=OFFICER)


def test_somebody_else_approves_from_the_launchpad_and_it_serves(proposed: Bank) -> None:
    version = candidate(proposed)
    assert proposed.launch("approve", version=version, by=OFFICER, reason=WHY).success
    record = proposed.history.current()
    assert record is not None
    assert (record.version, record.by, record.reason, record.trained_by) == (version, OFFICER, WHY, TRAINER)
    assert proposed.history.verify() == []
    assert "serves already" in refused(proposed, version=version, by="mary", reason=WHY)


# --- What is approved ---


def test_a_proposal_that_waited_too_long_cannot_be_approved(proposed: Bank) -> None:
    hasty = proposed.with_spec(gates={"proposal_days": 1e-9})
    assert hasty.materialize("champion", period=TRAINED).success
    (first, second) = hasty.history.proposals()
    assert (first.status, second.status) == ("superseded", "expired")
    told = refused(hasty, version=second.record.candidate, by=OFFICER, reason=WHY)
    assert "its time ended at" in told
    # Proposing it again is up to a run; approving it stays up to a person.
    assert proposed.materialize("champion", period=TRAINED).success
    assert proposed.serving() is None
    assert proposed.launch("approve", version=candidate(proposed), by=OFFICER, reason=WHY).success


def test_an_approval_of_other_evidence_than_was_read_moves_nothing(waiting: Bank) -> None:
    version = candidate(waiting)
    with pytest.raises(UserError, match="the proposal rests on evidence"):
        waiting.history.approve(version, OFFICER, WHY, evidence_sha256="0" * 64)
    read = waiting.registry.get(waiting.history.model, version)
    other = waiting.registry.attach_evidence(read, {"gates": [], "candidate": read.as_part(), "champion": None})
    with pytest.raises(UserError, match=f"not on {other}"):
        waiting.history.approve(version, OFFICER, WHY, evidence_sha256=other)
    assert waiting.serving() is None


@pytest.mark.parametrize("what", ["evidence", "model"])
def test_what_was_changed_on_the_disk_is_not_approved(proposed: Bank, what: str) -> None:
    version = candidate(proposed)
    digest = proposed.history.records()[-1].evidence_sha256
    name = f"*{digest}*" if what == "evidence" else f"v{version}/files/reasons.json"
    (victim,) = [path for path in (proposed.home / "place" / "store" / "models").rglob(name) if path.is_file()]
    victim.chmod(0o644)
    content = victim.read_bytes()
    victim.write_bytes(content.replace(b'"', b'" ', 1))
    told = refused(proposed, version=version, by=OFFICER, reason=WHY)
    assert "SHA-256" in told
    victim.write_bytes(content)
    assert proposed.launch("approve", version=version, by=OFFICER, reason=WHY).success


# --- Ways around an approval ---


@pytest.mark.parametrize("assets", [("champion",), ("model_card", "champion"), ("decisions",), ("drift_report",)])
def test_no_asset_that_is_materialized_alone_lets_anything_serve(waiting: Bank, assets: tuple[str, ...]) -> None:
    waiting.materialize(*assets, period=TRAINED, by=TRAINER)
    assert waiting.serving() is None
    assert {record.verdict for record in waiting.history.records()} == {"proposed"}


@pytest.mark.parametrize("by", [TRAINER, "mallory"])
def test_training_again_changes_neither_the_version_nor_who_trained_it(proposed: Bank, by: str) -> None:
    before = [each.sha256 for each in proposed.registry.versions(proposed.history.model)]
    proposed.run("train", TRAINED, by=by)
    assert [each.sha256 for each in proposed.registry.versions(proposed.history.model)] == before
    assert proposed.serving() is None
    assert {put.record.trained_by for put in proposed.history.proposals()} == {TRAINER}
    refused(proposed, version=candidate(proposed), by=TRAINER, reason=WHY)


def _forged(bank: Bank, verdict: str, **changes: Any) -> Mapping[str, Any]:
    """The metadata of a record that a run or an approval would have written, made by hand."""
    (put,) = [record for record in bank.history.records() if record.verdict == "proposed"][-1:]
    body = {**json.loads(put.text), "number": put.number + 1, "previous_record_sha256": put.record_sha256,
            "verdict": verdict, "version": put.candidate, "sha256": put.candidate_sha256, "to": put.candidate,
            "by": OFFICER, **changes}  # fmt: skip
    for name in ("expires_at", "approves", "rejects", "trained_by", "candidate_sha256"):
        if changes.get(name) is None and name in body and verdict != "proposed":
            del body[name]
    return ChampionRecord.made(body).metadata()


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [("promoted", {}), ("rolled_back", {}), ("promoted", {"approves": "0" * 64}), ("promoted", {"approves": "own"})],
)
def test_a_materialization_that_is_reported_by_hand_moves_nothing(
    proposed: Bank, verdict: str, changes: dict[str, Any]
) -> None:
    put = proposed.history.records()[-1]
    if changes.get("approves") == "own":
        # All that an approval has, but the trainer's own.
        changes = {"approves": put.record_sha256, "by": TRAINER, "trained_by": TRAINER,
                   "candidate_sha256": put.candidate_sha256}  # fmt: skip
    for partition in (None, TRAINED):
        event = dg.AssetMaterialization(
            proposed.key("champion"), metadata=_forged(proposed, verdict, **changes), partition=partition
        )
        proposed.instance.report_runless_asset_event(event)
    assert any("moves nothing" in problem or "cannot be" in problem for problem in proposed.history.verify())
    try:
        assert proposed.serving() is None
    except UserError as error:
        assert "cannot be trusted" in str(error)  # noqa: PT017 - either is safe, and says so
    assert not proposed.materialize("decisions", period=TRAINED).success
    assert proposed.log.head().number == 0


def test_a_materialization_without_a_record_changes_nothing_and_is_told(proposed: Bank) -> None:
    proposed.instance.report_runless_asset_event(dg.AssetMaterialization(proposed.key("champion"), partition=TRAINED))
    assert proposed.serving() is None
    (problem,) = proposed.history.verify()
    assert "carries no record" in problem
    assert proposed.launch("approve", version=candidate(proposed), by=OFFICER, reason=WHY).success


def test_the_champions_own_content_is_kept_whoever_materializes_it_again(ran_copy: Bank) -> None:
    before = ran_copy.serving()
    assert ran_copy.materialize("champion", period=TRAINED, by="mallory").success
    record = ran_copy.history.records()[-1]
    assert (record.verdict, record.version, record.to_version) == ("kept", before, None)
    assert "champion's own content" in record.reason
    assert ran_copy.history.open_proposal() is None


# --- Rejection and rollback ---


def test_what_was_rejected_is_not_proposed_again_by_itself(proposed: Bank) -> None:
    version = candidate(proposed)
    assert proposed.launch("reject", version=version, by="mary", reason="the young are rejected too often").success
    assert "mary rejected it" in failure(proposed.launch("reject", version=version, by="mary", reason="again"))
    assert proposed.materialize("champion", period=TRAINED).success
    record = proposed.history.records()[-1]
    assert record.verdict == "kept"
    assert "mary rejected version" in record.reason
    assert "young are rejected" in refused(proposed, version=version, by=OFFICER, reason=WHY)


def test_only_what_once_served_can_serve_again(ran_copy: Bank) -> None:
    other = ({1, 2} - {ran_copy.serving()}).pop()
    with pytest.raises(UserError) as caught:
        ran_copy.history.rollback(other, OFFICER, WHY)
    assert "was never promoted" in str(caught.value)
    assert str(caught.value) in failure(ran_copy.launch("rollback", version=other, by=OFFICER, reason=WHY))
    told = failure(ran_copy.launch("rollback", version=ran_copy.serving(), by=OFFICER, reason=WHY))
    assert "is the champion already" in told


# --- Freezes and requests ---


def test_people_freeze_lift_and_ask_from_the_launchpad(waiting: Bank) -> None:
    assert waiting.launch("freeze_training", by="mary", reason="audit").success
    assert incidents.frozen(waiting.operations) is not None
    told = failure(waiting.launch("freeze_training", by="mary", reason="audit"))
    assert "training is frozen already, by mary" in told
    assert waiting.launch("unfreeze_training", by="mary", reason="audit is over").success
    assert incidents.frozen(waiting.operations) is None
    assert "training is not frozen" in failure(waiting.launch("unfreeze_training", by="mary", reason="again"))
    assert waiting.launch("request_training", by="mary", reason="new product").success
    (request,) = incidents.open_requests(waiting.operations)
    assert (request.by, request.reason) == ("mary", "new product")
    assert "the reason is empty" in failure(waiting.launch("request_training", by="mary", reason=" "))


def test_an_incident_that_is_not_there_cannot_be_settled(waiting: Bank) -> None:
    told = failure(waiting.launch("acknowledge_incident", by="mary", reason=WHY, incident="nothing"))
    assert "incident nothing: there is no such incident" in told
    assert "no incident is open" in told


# --- The jobs themselves ---


def test_the_launchpads_jobs_are_these_and_say_what_they_do() -> None:
    from tests.credit_risk.ran_world import spec_at

    jobs = {job.name: job for job in governance_jobs(spec_at(Path()))}
    assert set(jobs) == {
        f"{NAME}_{name}"
        for name in (
            "approve", "reject", "rollback", "acknowledge_incident", "freeze_training", "unfreeze_training",
            "request_training",
        )
    }  # fmt: skip
    assert all(len(job.description or "") > 25 and job.tags["system"] == NAME for job in jobs.values())


# --- The command line ---


@pytest.fixture
def command(proposed: Bank, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line at the bank's home, with the spec in a file of its own."""
    for name in list(os.environ):
        if name.startswith("MLOPS_ASSETS_") and name != "MLOPS_ASSETS_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("MLOPS_ASSETS_HOME", str(proposed.home / "place"))
    monkeypatch.setenv("COLUMNS", "200")
    path = proposed.home / "bank.yaml"
    settings = {"system": "credit_risk", **json.loads(json.dumps(RAW))}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, [*arguments, "--spec", str(path)])

    return run


def test_the_command_line_refuses_and_approves_as_the_launchpad_does(proposed: Bank, command: Any) -> None:
    version = str(candidate(proposed))
    own = command("approve", NAME, "--version", version, "--by", " GRACE ", "--reason", WHY)
    assert own.exit_code == 1
    assert "whoever approves it must be somebody else" in " ".join(own.stderr.split())
    listed = command("proposals", NAME)
    assert "open" in listed.output
    other = command("approve", NAME, "--version", version, "--by", OFFICER, "--reason", WHY)
    assert other.exit_code == 0, other.output
    assert proposed.serving() == int(version)
