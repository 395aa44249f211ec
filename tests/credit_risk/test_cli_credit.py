"""The commands about credit models, on a lender that the command line made: what they do, and what they refuse."""

import json
import re
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mlops_assets.environment import Environment
from tests.commands import cells, invoke, own_settings, shown, told
from tests.contract.guarded import BIN, call, guarded_env
from tests.contract.lender import (
    APPLICATION,
    DECIDED,
    FIRST,
    NAME,
    NEXT,
    OFFICER,
    SECOND,
    SPEC,
    TRAINED,
    Lender,
    ask,
    lender,
    serving,
    week,
)

PATH = "/v1/credit/decisions"
WHO = ("--by", "ada", "--reason", "as agreed [1]")
ON_A_SYSTEM = {
    "approve": ("--version", "1", *WHO), "reject": ("--version", "1", *WHO), "proposals": (),
    "production-at": ("2026-01-01T00:00:00Z",), "incidents": (), "training": ("freeze", *WHO), "trace": ("x",),
    "replay": ("--all",), "impact": ("--model", "1"), "rescore": ("--model", "1", *WHO), "serve": ("--port", "0"),
}  # fmt: skip
"""Commands about one system, with arguments that would do."""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own_settings(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Lender:
    return lender(tmp_path_factory)


def _enter(patch: pytest.MonkeyPatch, there: Lender) -> Lender:
    patch.setenv("MLOPS_ASSETS_HOME", str(there.home))
    patch.setenv("MLOPS_ASSETS_SPECS", str(there.spec))
    patch.chdir(there.folder)
    return there


@pytest.fixture
def home(world: Lender, monkeypatch: pytest.MonkeyPatch) -> Lender:
    """The finished lender, for commands that only read."""
    return _enter(monkeypatch, world)


@pytest.fixture
def own(world: Lender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lender:
    """A lender of the test's own."""
    return _enter(monkeypatch, world.copied(tmp_path / "lender"))


@pytest.fixture
def empty(world: Lender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home in which nothing ran yet, of a system that is configured."""
    monkeypatch.setenv("MLOPS_ASSETS_SPECS", str(world.spec))
    return tmp_path / "home"


def touched(*arguments: str) -> pd.DataFrame:
    """Return what a command writes to a file."""
    shown(invoke(*arguments, "--csv", "written.csv"))
    return pd.read_csv("written.csv")


def decisions(version: int = FIRST) -> pd.DataFrame:
    return touched("impact", NAME, "--model", str(version))


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        *[(command,) for command in ON_A_SYSTEM],
        ("approve", NAME, *WHO),
        ("approve", NAME, "--version", "4", "--reason", "why"),
        ("approve", NAME, "--version", "4", "--by", "ada"),
        ("approve", NAME, "--version", "four", *WHO),
        ("reject", NAME, "--version", "4.0", *WHO),
        ("production-at", NAME),
        ("incidents", NAME, "settle", "x", *WHO),
        ("incidents", NAME, "acknowledge"),
        ("incidents", NAME, "acknowledge", "x"),
        ("incidents", NAME, "acknowledge", "x", "--by", "ada"),
        ("incidents", NAME, "acknowledge", "x", *WHO, "--as", "forgotten"),
        ("training", NAME, "thaw", *WHO),
        ("training", NAME, "freeze", "--by", "ada"),
        ("trace", NAME),
        ("impact", NAME, "--model", "last"),
        ("rescore", NAME, *WHO),
        ("rescore", NAME, "--model", "2", "--by", "ada"),
        ("serve", NAME, "--port", "65536"),
        ("serve", NAME, "--port", "-1"),
        ("reports", "--port", "99999"),
        ("reports", "--port", "http"),
        ("demo", "--system", "credit_risk", "--applications", "19"),
    ],
)
def test_wrong_usage_is_answered_with_usage(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert not Path("home").exists()


@pytest.mark.parametrize("command", ON_A_SYSTEM)
def test_a_system_that_is_not_configured_is_answered_with_those_that_are(command: str) -> None:
    message = told(invoke(command, "films", *ON_A_SYSTEM[command]))
    assert message == (
        "MLOPS_ASSETS_SPECS: no credit model is named 'films'. "
        "Remedy: name one of credit_risk, or give its file with --spec."
    )
    assert not Path("home").exists()


@pytest.mark.parametrize("command", ON_A_SYSTEM)
def test_a_system_of_another_kind_is_no_credit_model(command: str) -> None:
    assert "no credit model is named 'discover_weekly'" in told(
        invoke(command, "discover_weekly", *ON_A_SYSTEM[command])
    )


def test_a_file_with_the_spec_of_another_system_is_named(world: Lender) -> None:
    message = told(invoke("proposals", "films", "--spec", str(world.spec)))
    assert message.startswith(f"{world.spec}: no credit model is named 'films'. Remedy: name one of {NAME}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("name: [\n", "cannot be read as YAML"),
        ("system: credit_risk\n", "there is no feature: name some under `numeric:` or `categorical:`"),
        ("system: credit_cards\n", "unknown system 'credit_cards'"),
        ("system: [credit_risk]\n", "unknown system ['credit_risk']"),
        ("name: bank\n", "no credit model is named 'bank'"),
    ],
)
def test_a_spec_that_cannot_be_used_is_named(content: str | None, said: str) -> None:
    if content is not None:
        Path("bank.yaml").write_text(content, encoding="utf-8")
    message = told(invoke("proposals", "bank", "--spec", "bank.yaml"))
    assert message.startswith("bank.yaml: ")
    assert said in message


# --- before anything ran -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("approve", NAME, "--version", "1", *WHO), f"{NAME}.pd_model version 1 was never proposed"),
        (("reject", NAME, "--version", "1", *WHO), f"{NAME}.pd_model version 1 was never proposed"),
        (("trace", NAME, "x"), "there is no decision 'x'. Remedy: look it up by the application's id"),
        (("replay", NAME, "x"), "there is no decision 'x'"),
        (("impact", NAME, "--model", "1"), f"{NAME}.pd_model has no version 1"),
        (("rescore", NAME, "--model", "1", *WHO), "there is no champion yet. Remedy: train and evaluate"),
        (("rollback", NAME, "--to", "1", "--reason", "why"), "there is no champion yet to roll back from"),
        (("incidents", NAME, "acknowledge", "x", *WHO), "there is no such incident. Remedy: no incident is open"),
        (("training", NAME, "unfreeze", *WHO), "training is not frozen"),
        (("status", "--system", NAME), f"no such system has run: {NAME}"),
    ],
)
def test_what_needs_a_model_says_what_is_missing(empty: Path, command: tuple[str, ...], said: str) -> None:
    assert said in told(invoke(*command))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("proposals", NAME), "proposals"),
        (("production-at", NAME, "2026-01-01T00:00:00Z"), f"{NAME}: no version served at 2026-01-01T00:00:00+00:00"),
        (("incidents", NAME), "0 data incident(s)"),
        (("replay", NAME, "--all"), "0 of 0 decisions are byte-equal"),
        (("impact", NAME, "--batch", "x"), f"Is the name right? Batches are in the table {NAME}.batches"),
        (("impact", NAME, "--rule", "x"), "0 decision(s) touched"),
        (("training", NAME, "freeze", *WHO), f"{NAME}: freeze by ada is noted."),
    ],
)
def test_what_only_looks_finds_nothing(empty: Path, command: tuple[str, ...], said: str) -> None:
    assert said in shown(invoke(*command))


# --- running -------------------------------------------------------------------------------------------------------


def test_a_run_trains_and_says_what_a_person_can_do(world: Lender) -> None:
    first, second = re.split(r"(?m)^\$ run ", world.done.stdout)[1:]
    assert f"{NAME}: 35 period(s), {week(0)} to {TRAINED}" in first
    assert f"data {week(0)} to {TRAINED}" in first
    assert "there was no champion, and every required gate passed" in first
    assert f"mlops-assets approve {NAME} --version {FIRST} --by NAME --reason TEXT --spec lender.yaml" in first
    assert f"decisions {DECIDED[0]} to {DECIDED[1]}" in second
    assert "done decisions" in second
    assert f"better than version {FIRST}" in second
    assert world.done.stderr == ""


def test_the_command_that_a_run_suggests_is_one_that_works(own: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOPS_ASSETS_SPECS")
    suggested = re.findall(r"mlops-assets (approve .* --by) NAME --reason TEXT (--spec \S+)", own.done.stdout)[-1]
    command = [*" ".join(suggested).split(), "--reason", "as it said"]
    command.insert(command.index("--by") + 1, "ada")
    assert f"version {FIRST} -> {SECOND}" in shown(invoke(*command))


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (("--to", "2031-01-06"), "no such periods: the first to 2031-01-06"),
        (("--from", "2024-01-02"), "no such periods: 2024-01-02 to the last"),
        (("--from", NEXT, "--to", TRAINED), f"no such periods: {NEXT} to {TRAINED}"),
    ],
)
def test_a_period_that_does_not_exist_is_answered_with_those_that_do(
    home: Lender, span: tuple[str, str], said: str
) -> None:
    message = told(invoke("run", str(home.spec), *span))
    assert said in message
    assert f"complete periods are {week(0)} to {NEXT}; a period is named by its first day" in message


def _run_on(folder: Path, content: bytes | None) -> str:
    settings = json.loads(json.dumps(SPEC, default=str))
    (folder / "own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "feed").mkdir()
    if content is not None:
        (folder / "feed" / f"{week(0)}.csv").write_bytes(content)
    return told(invoke("run", "own.yaml", "--to", week(0)))


FEED = "application_id,applicant_id,applied_at,annual_income\nA,P,2024-01-02T10:00:00Z,42000\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file matches this path"),
        (b"", "is empty"),
        (FEED.encode(), "'loan_amount'"),
        (FEED.replace("annual_income", "anual_income").encode(), "'anual_income'"),
        (FEED.replace("A,P", "Å,P").encode("latin-1"), "encoding"),
    ],
)
def test_a_feed_that_cannot_be_read_is_named_with_its_place(tmp_path: Path, content: bytes | None, said: str) -> None:
    message = _run_on(tmp_path, content)
    assert str(tmp_path / "feed" / f"{week(0)}.csv") in message
    assert said in message
    assert "Run the same command again when the cause is mended" in message
    assert NAME in shown(invoke("status"))


# --- reading the finished world ------------------------------------------------------------------------------------


def test_status_shows_who_serves_what_waits_and_what_was_decided(home: Lender) -> None:
    rows = dict(row for row in cells(shown(invoke("status"))) if row[0])
    assert rows["champion"].startswith(f"version {FIRST} since ")
    assert f"by {OFFICER} (the card of {FIRST} is read)" in rows["champion"]
    assert rows["open proposal"].startswith(f"version {SECOND}, trained by ")
    assert rows["open incidents"] == "none"
    assert re.match(r"accept [\d,]+, re.*; log of [\d,]+ entries, head [0-9a-f]{12}", rows["decisions"])


def test_status_and_rollback_need_no_spec(home: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shown(invoke("status"))
    monkeypatch.delenv("MLOPS_ASSETS_SPECS")
    assert shown(invoke("status", "--system", NAME)) == before
    assert "version 2 is the champion already" in told(invoke("rollback", NAME, "--to", "2", "--reason", "why"))


def test_proposals_are_listed_with_what_became_of_them(home: Lender) -> None:
    rows = [row for row in cells(shown(invoke("proposals", NAME))) if row[0]]
    assert [row[:2] for row in rows] == [[str(FIRST), "approved"], [str(SECOND), "open"]]
    assert f"better than version {FIRST}" in rows[1][-1]


def test_what_served_at_a_moment_is_told_with_the_reason(home: Lender) -> None:
    told_of = shown(invoke("production-at", NAME, "2199-01-01T00:00:00+02:00"))
    rows = dict(cells(told_of))
    assert f"{NAME} at 2199-01-01T00:00:00+02:00" in told_of
    assert (rows["version"], rows["verdict"], rows["by"]) == (str(FIRST), "promoted", OFFICER)
    assert rows["reason"] == f"the card of {FIRST} is read"
    assert re.fullmatch(r"[0-9a-f]{64}", rows["evidence"])
    assert "no version served" in shown(invoke("production-at", NAME, "2020-01-01T00:00:00Z"))


@pytest.mark.parametrize("time", ["soon", "2026-13-01T00:00:00Z", "", "2026-01-01", "2026-01-01T00:00:00"])
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (("production-at", NAME), "production-at"),
        (("replay", NAME, "--all", "--from"), "--from"),
        (("replay", NAME, "--all", "--to"), "--to"),
    ],
)
def test_a_time_that_is_none_or_has_no_zone_is_refused(
    home: Lender, command: tuple[str, ...], where: str, time: str
) -> None:
    message = told(invoke(*command, time))
    assert message.startswith(f"{where}: {time!r} ")
    assert message.endswith("Remedy: write one such as 2026-11-23T06:00:00+00:00.")


def test_a_decision_is_traced_to_all_that_is_behind_it(home: Lender) -> None:
    one = decisions().query("channel == 'batch' and decision == 'reject'").iloc[0]
    printed = shown(invoke("trace", NAME, one["decision_id"]))
    assert printed == shown(invoke("trace", NAME, one["application_id"]))
    assert f"{NAME}: decision {one['decision_id']}" in printed
    links = {row[0].partition(":")[0] for row in cells(printed) if row[0]}
    assert {
        "decision", "reasons", "application", "batch", "model", "training set", "approval", "checks", "policy", "code",
        "log",
    } <= links  # fmt: skip
    rows = dict(row for row in cells(printed) if row[0])
    assert rows["decision: what"] == f"reject by rule {one['rule']}"
    assert rows["application: source"].startswith(str(home.folder / "feed" / f"{one['period']}.csv"))
    assert rows["approval: by"] == OFFICER
    assert rows["batch: id"] == one["batch_id"]


def test_a_decision_that_came_over_http_is_traced_without_a_batch(home: Lender) -> None:
    rows = dict(row for row in cells(shown(invoke("trace", NAME, APPLICATION["application_id"]))) if row[0])
    assert rows["batch"] == "none: it came by api"
    assert rows["log: run"] == "service"


@pytest.mark.parametrize("name", ["nobody", "", "0" * 32])
def test_a_decision_that_does_not_exist_is_named(home: Lender, name: str) -> None:
    assert f"there is no decision {name!r}" in told(invoke("trace", NAME, name))
    assert f"there is no decision {name!r}" in told(invoke("replay", NAME, name))


def test_decisions_replay_one_by_one_by_time_and_all_of_them(home: Lender) -> None:
    made = decisions()
    one = home.answer["decision_id"]
    assert "1 of 1 decisions are byte-equal" in shown(invoke("replay", NAME, one))
    assert f"{len(made)} of {len(made)} decisions are byte-equal" in shown(invoke("replay", NAME, "--all"))
    # What came over HTTP was decided last.
    since = ("--from", home.answer["decided_at"])
    until = ("--to", made["decided_at"].min())
    assert "1 of 1 decisions are byte-equal" in shown(invoke("replay", NAME, "--all", *since))
    assert "0 of 0 decisions are byte-equal" in shown(invoke("replay", NAME, "--all", *since, *until))


@pytest.mark.parametrize(
    "arguments", [(), ("x", "--all"), ("x", "--from", "2026-01-01T00:00:00Z"), ("--to", "2026-01-01T00:00:00Z")]
)
def test_a_replay_of_nobody_knows_what_is_refused(home: Lender, arguments: tuple[str, ...]) -> None:
    message = told(invoke("replay", NAME, *arguments))
    assert message.startswith("replay: it is not said which decisions. Remedy: name one decision, or give --all")


def test_what_a_model_touched_is_counted_shown_and_written(home: Lender, tmp_path: Path) -> None:
    file = tmp_path / "touched.csv"
    printed = shown(invoke("impact", NAME, "--model", str(FIRST), "--csv", str(file)))
    written = pd.read_csv(file)
    assert f"{NAME}: {len(written)} decision(s) touched" in printed
    assert f"{len(written)} row(s) written to {file}" in printed
    assert set(written["model_version"]) == {FIRST}
    assert set(written["channel"]) == {"batch", "api"}
    assert "nan" not in printed
    assert "0 decision(s) touched" in shown(invoke("impact", NAME, "--model", str(SECOND)))


def test_what_a_batch_and_a_rule_touched(home: Lender) -> None:
    made = decisions()
    batch = made["batch_id"].dropna().iloc[0]
    assert len(touched("impact", NAME, "--batch", batch)) == (made["batch_id"] == batch).sum()
    rule = made["rule"].value_counts().index[-1]
    assert len(touched("impact", NAME, "--rule", rule)) == (made["rule"] == rule).sum()


def test_a_rule_that_quarantined_leads_to_the_decisions_of_people(home: Lender) -> None:
    resources: dict[str, Any] = Environment("embedded", home.home).resources()
    of_weeks = f"where period >= date '{DECIDED[0]}'"
    found = resources["warehouse"].query(f"select rule from {NAME}.quarantined_applications {of_weeks} order by rule")
    frame = touched("impact", NAME, "--rule", found["rule"].iloc[0])
    assert set(frame["decision"]) == {"refer"}


@pytest.mark.parametrize(
    "arguments", [(), ("--model", "2", "--rule", "x"), ("--batch", "x", "--rule", "x"), ("--csv", "x.csv")]
)
def test_the_impact_of_nobody_knows_what_is_refused(home: Lender, arguments: tuple[str, ...]) -> None:
    message = told(invoke("impact", NAME, *arguments))
    assert message == "impact: it is not said the impact of what. Remedy: give one of --model, --batch and --rule."


@pytest.mark.parametrize("file", ["gone/x.csv", "."])
@pytest.mark.parametrize("command", [("impact", NAME, "--model", "2"), ("rescore", NAME, "--model", "2", *WHO)])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_done(
    own: Lender, command: tuple[str, ...], file: str
) -> None:
    shown(invoke("approve", NAME, "--version", str(SECOND), *WHO))
    message = told(invoke(*command, "--csv", file))
    assert message.startswith(f"{file}: ")
    assert message.endswith("Remedy: name a file in a folder that exists.")
    assert "re-scored" not in shown(invoke("trace", NAME, APPLICATION["application_id"]))


# --- deciding about a model: each on a lender of its own -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", "4", "--by", "{trainer}", "--reason", "why"), "whoever approves it must be somebody else"),
        (("--version", "4", "--by", " {TRAINER} ", "--reason", "why"), "whoever approves it must be somebody else"),
        (("--version", "4", "--by", " ", "--reason", "why"), "the name of who decides is empty"),
        (("--version", "4", "--by", "ada", "--reason", " "), "the reason is empty"),
        (("--version", "4", *WHO, "--evidence", "abc"), "not on abc"),
        (("--version", "3", *WHO), "version 3 was never proposed; version 4 is proposed now"),
        (("--version", "2", *WHO), "version 2 serves already"),
        (("--version", "99", *WHO), "version 99 was never proposed"),
        (("--version", "-1", *WHO), "version -1 was never proposed"),
    ],
)
def test_an_approval_that_cannot_be_is_refused_and_moves_nothing(
    home: Lender, arguments: tuple[str, ...], said: str
) -> None:
    trainer = next(row for row in cells(shown(invoke("proposals", NAME))) if row[0] == str(SECOND))[2]
    filled = [each.format(trainer=trainer, TRAINER=trainer.upper()) for each in arguments]
    assert said in told(invoke("approve", NAME, *filled))
    assert f"version {FIRST} since " in shown(invoke("status"))


def test_an_approval_on_its_evidence_moves_the_champion(own: Lender) -> None:
    printed = shown(invoke("production-at", NAME, "2199-01-01T00:00:00Z"))
    assert dict(cells(printed))["version"] == str(FIRST)
    evidence = _evidence(own)
    done = shown(invoke("approve", NAME, "--version", str(SECOND), "--evidence", evidence, *WHO))
    assert f"done {NAME}: version {FIRST} -> {SECOND}, approved by ada." in done
    rows = dict(cells(shown(invoke("production-at", NAME, "2199-01-01T00:00:00Z"))))
    assert (rows["version"], rows["reason"], rows["evidence"]) == (str(SECOND), "as agreed [1]", evidence)
    assert "serves already" in told(invoke("approve", NAME, "--version", str(SECOND), *WHO))


def _evidence(there: Lender) -> str:
    printed = shown(invoke("proposals", NAME))
    # The hash is folded within its column.
    rows = cells(printed)
    at = next(number for number, row in enumerate(rows) if row[0] == str(SECOND))
    parts = [rows[at], *[row for row in rows[at + 1 :] if row[0] == ""]]
    return "".join(row[4] for row in parts)


def test_a_rejection_is_final_and_the_champion_stays(own: Lender) -> None:
    done = shown(invoke("reject", NAME, "--version", str(SECOND), *WHO))
    assert f"done {NAME}: version {SECOND} is rejected; the champion stays." in done
    assert f"version {FIRST} since " in shown(invoke("status"))
    for command in ("approve", "reject"):
        assert "ada rejected it: as agreed [1]" in told(invoke(command, NAME, "--version", str(SECOND), *WHO))


def test_a_bad_model_is_found_out_rolled_back_and_its_decisions_made_again(own: Lender) -> None:
    mine = ("--by", "mary", "--reason", "complaints [x]")
    said = told(invoke("rescore", NAME, "--model", str(FIRST), *mine))
    assert "it would decide the same again. Remedy: roll back first" in said
    shown(invoke("approve", NAME, "--version", str(SECOND), *WHO))
    assert "has decided nothing" in told(invoke("rescore", NAME, "--model", "1", *mine))
    assert "the name is empty" in told(invoke("rescore", NAME, "--model", "2", "--by", " ", "--reason", "why"))
    assert "has no version 99" in told(invoke("rescore", NAME, "--model", "99", *mine))

    made = decisions()
    again = touched("rescore", NAME, "--model", str(FIRST), *mine)
    assert sorted(again["decision_id"]) == sorted(made["decision_id"])
    assert set(again["model_version_after"]) == {SECOND}
    assert again["changed"].any()
    # The decisions themselves stand, and each leads to what it would be now.
    assert decisions().equals(made)
    assert "complaints [x] (mary)" in shown(invoke("trace", NAME, made["decision_id"].iloc[0]))
    assert f"{len(made)} of {len(made)} decisions are byte-equal" in shown(invoke("replay", NAME, "--all"))

    back = shown(invoke("rollback", NAME, "--to", str(FIRST), *mine))
    assert f"done {NAME}: version {SECOND} -> {FIRST}" in back
    rows = dict(row for row in cells(shown(invoke("status"))) if row[0])
    assert rows["champion"].startswith(f"version {FIRST} since ")
    assert "complaints [x]" in rows["champion"]
    assert "roll back to it if it shall serve again" in told(invoke("approve", NAME, "--version", str(SECOND), *WHO))
    assert "never promoted" in told(invoke("rollback", NAME, "--to", "1", *mine))


# --- what people settle --------------------------------------------------------------------------------------------


def test_training_is_frozen_once_and_lifted_once(own: Lender) -> None:
    shown(invoke("training", NAME, "freeze", *WHO))
    assert "training is frozen already, by ada since" in told(invoke("training", NAME, "freeze", *WHO))
    assert "frozen: by ada since" in shown(invoke("status"))
    shown(invoke("training", NAME, "unfreeze", *WHO))
    assert "training is not frozen" in told(invoke("training", NAME, "unfreeze", *WHO))
    assert "not frozen" in shown(invoke("status"))


def test_a_request_to_train_is_kept_with_who_and_why(own: Lender) -> None:
    assert f"{NAME}: request by ada is noted." in shown(invoke("training", NAME, "request", *WHO))
    assert "the reason is empty" in told(invoke("training", NAME, "request", "--by", "ada", "--reason", " "))
    from mlops_assets.credit_risk import incidents

    resources: dict[str, Any] = Environment("embedded", own.home).resources()
    (request,) = incidents.open_requests(resources["journals"].open(NAME, "operations"))
    assert (request.by, request.reason) == ("ada", "as agreed [1]")


def _in_hundredths(value: Any) -> Any:
    return value * 100 if isinstance(value, int | float) else value


def test_a_unit_error_stops_the_run_until_people_have_settled_every_incident(own: Lender) -> None:
    own.deliver(37, annual_income=_in_hundredths)
    message = told(invoke("run", str(own.spec), "--from", NEXT, "--to", NEXT))
    assert f"mlops-assets incidents {NAME} acknowledge " in message
    assert "a change of unit by 100 is suspected" in message
    printed = shown(invoke("incidents", NAME))
    found = [row for row in cells(printed) if row[0]]
    assert f"{len(found)} data incident(s)" in printed
    assert {row[1] for row in found} == {"open"}
    assert {row[2] for row in found} == {NEXT}
    assert any(row[4] == "annual_income" for row in found)
    assert found[0][0] in shown(invoke("status"))

    names = [row[0] for row in found]
    assert f"name one of those that are open: {names[0]}" in told(invoke("incidents", NAME, "acknowledge", "x", *WHO))
    empty = ("--by", "ada", "--reason", " ")
    assert "the reason is empty" in told(invoke("incidents", NAME, "acknowledge", names[0], *empty))
    for name in names:
        assert f"{name} is waived by ada" in shown(invoke("incidents", NAME, "acknowledge", name, *WHO))
    assert "it was waived by ada at " in told(invoke("incidents", NAME, "acknowledge", names[0], *WHO))
    assert "0 data incident(s)" in shown(invoke("incidents", NAME))
    closed = [row for row in cells(shown(invoke("incidents", NAME, "--all"))) if row[0]]
    assert {row[1] for row in closed} == {"waived"}
    assert {row[6] for row in closed} == {"ada"}
    assert dict(row for row in cells(shown(invoke("status"))) if row[0])["open incidents"] == "none"


def test_an_incident_that_is_resolved_keeps_its_batch_out(own: Lender) -> None:
    own.deliver(37, annual_income=_in_hundredths)
    told(invoke("run", str(own.spec), "--from", NEXT, "--to", NEXT))
    names = [row[0] for row in cells(shown(invoke("incidents", NAME))) if row[0]]
    done = shown(invoke("incidents", NAME, "acknowledge", names[0], "--as", "resolved", *WHO))
    assert "its batch stays blocked until another delivery replaces it" in done


# --- a log that somebody changed -----------------------------------------------------------------------------------


def _change(there: Lender, statement: str, *values: Any) -> None:
    file = there.home / "journals" / NAME / "decisions.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        triggers = connection.execute("select name from sqlite_master where type = 'trigger'").fetchall()
        for (name,) in triggers:
            connection.execute(f"drop trigger {name}")
        connection.execute(statement, values)


def test_a_changed_entry_is_named_and_the_replay_fails(own: Lender) -> None:
    one = decisions().query("decision == 'reject'").iloc[0]
    number = _number_of(one["decision_id"])
    _change(own, "update entries set body = replace(body, '\"reject\"', '\"accept\"') where number = ?", number)
    result = invoke("replay", NAME, "--all")
    message = told(result)
    assert "1 decision(s) differ" in message or "entries of the log are broken" in message
    assert re.search(rf"broken .*\b{number}\b", result.stdout)
    assert "restore the log, the model files or the code" in message


def test_a_log_that_was_cut_is_found_out_by_dagsters_event_log(own: Lender) -> None:
    _change(own, "delete from entries where number > 100")
    result = invoke("replay", NAME, "--all")
    assert "entries of the log are broken" in told(result)
    assert "broken" in result.stdout


def _number_of(decision: str) -> int:
    rows = dict(row for row in cells(shown(invoke("trace", NAME, decision))) if row[0])
    return int(rows["log: entry"])


# --- services ------------------------------------------------------------------------------------------------------


def test_the_service_answers_remembers_and_ends_when_it_is_told_to(own: Lender) -> None:
    made = decisions().query("channel == 'batch'").iloc[0]
    with own.serving() as (process, url):
        assert ask(f"{url}/health", attempts=50)[0] == 200
        status, text, _ = ask(f"{url}{PATH}", APPLICATION, attempts=50)
        assert (status, json.loads(text)["decision_id"]) == (200, own.answer["decision_id"])
        assert json.loads(text)["repeated"]
        status, text, _ = ask(f"{url}{PATH}/{made['decision_id']}")
        assert (status, json.loads(text)["decision"]) == (200, made["decision"])
        assert ask(f"{url}{PATH}/{'0' * 32}")[0] == 404
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in {0, -signal.SIGTERM}
    assert "Traceback" not in errors


def test_the_service_lives_before_there_is_a_champion_and_ends_on_an_interrupt(empty: Path, world: Lender) -> None:
    env = guarded_env(empty.parent, MLOPS_ASSETS_HOME=str(empty), MLOPS_ASSETS_SPECS=str(world.spec))
    with serving("serve", NAME, "--port", "0", cwd=empty.parent, env=env) as (process, url):
        assert ask(f"{url}/health", attempts=50)[0] == 200
        status, text, headers = ask(f"{url}{PATH}", APPLICATION)
        assert status == 503
        assert "Retry-After" in headers or "retry-after" in headers
        assert "Traceback" not in text
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "remedy"), [(("serve", NAME), "no tokens are set"), (("reports",), "would be shown to anybody")]
)
def test_nothing_is_served_to_others_without_knowing_who_asks(
    home: Lender, command: tuple[str, ...], remedy: str
) -> None:
    assert remedy in told(invoke(*command, "--host", "0.0.0.0", "--port", "0"))


@pytest.mark.parametrize("command", [("serve", NAME), ("reports",)])
def test_a_port_that_is_taken_is_named(home: Lender, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = told(invoke(*command, "--port", str(port)))
    assert message.startswith(f"127.0.0.1 port {port}: cannot listen: ")
    assert message.endswith("Remedy: choose another port, or stop the program that holds this one.")


def test_reports_shows_cards_and_drift_and_nothing_else(home: Lender) -> None:
    store = home.home / "store"
    documents = {path.relative_to(store / "reports").as_posix(): path for path in store.glob("reports/**/*.*")}
    card = next(name for name in documents if "/cards/" in name and name.endswith(".html"))
    drift = next(name for name in documents if "/drift/" in name)
    with serving("reports", "--port", "0", cwd=home.folder, env=home.env, stop=signal.SIGINT) as (process, url):
        status, text, headers = ask(f"{url}/{card}", attempts=50)
        assert (status, text) == (200, documents[card].read_text(encoding="utf-8"))
        assert headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert ask(f"{url}/{drift}")[0] == 200
        assert ask(f"{url}/{NAME}/cards/none.html")[0] == 404
        for path in (
            "/../../dagster/dagster.yaml",
            "/..%2f..%2fdagster/dagster.yaml",
            "/%2e%2e/models/",
            "//etc/passwd",
        ):
            assert _raw(url, path)[0] == 404
        assert _raw(url, f"/{card}", host="reports.example")[0] == 421
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


def _raw(url: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    """Ask for a path as it is written, which urllib would tidy up."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host or url.removeprefix("http://"))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_installed_command_ends_with_the_status_of_its_errors(home: Lender) -> None:
    done: subprocess.CompletedProcess[str] = call(
        str(BIN / "mlops-assets"), "trace", NAME, "nobody", cwd=home.folder, env=home.env
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error ")
    assert "Traceback" not in done.stderr
