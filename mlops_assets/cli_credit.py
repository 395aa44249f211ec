"""The commands about credit models: approve, settle, trace, replay, re-score, serve.

What belongs here: arguments and tables for a person. What does not: any work (the system's own modules).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from mlops_assets.foundation.errors import UserError

_SYSTEM = click.argument("system")
_BY = click.option("--by", required=True, metavar="NAME", help="Who decides; it goes into the history.")
_REASON = click.option("--reason", required=True, help="Why; it goes into the history.")
_SPEC = click.option(
    "--spec", "spec_file", type=click.Path(path_type=Path), help="The system's YAML file, where it is not configured."
)


class Desk:
    """What the commands about one system work with."""

    def __init__(self, place: Any, instance: Any, spec: Any) -> None:
        self.place, self.instance, self.spec = place, instance, spec
        self.resources: dict[str, Any] = place.resources()

    @property
    def registry(self) -> Any:
        """The registry of model versions."""
        return self.resources["models"].open()

    @property
    def history(self) -> Any:
        """The champion's history."""
        from mlops_assets.credit_risk.pipeline import history_of

        return history_of(self.spec, self.instance, self.registry)

    @property
    def operations(self) -> Any:
        """The journal of incidents, freezes and requests."""
        return self.resources["journals"].open(self.spec.name, "operations")

    @property
    def log(self) -> Any:
        """The log of decisions."""
        from mlops_assets.credit_risk.decision_log import DecisionLog

        return DecisionLog(self.resources["journals"].open(self.spec.name, "decisions"))

    @property
    def tracer(self) -> Any:
        """What follows a decision back to where it came from."""
        from mlops_assets.credit_risk.tracing import Tracer

        warehouse, store = self.resources["warehouse"], self.resources["store"]
        return Tracer(self.spec, self.log, self.registry, self.history, warehouse, store.path(), self.operations)


@contextmanager
def desk(system: str, spec_file: Path | None = None) -> Iterator[Desk]:
    """Open the system that a person named.

    Raises
    ------
    UserError
        No credit model of that name is configured.
    """
    from mlops_assets import environment
    from mlops_assets.definitions import configured_specs
    from mlops_assets.running import open_instance
    from mlops_assets.systems import load_any_spec

    found = [load_any_spec(spec_file)] if spec_file else configured_specs()
    credit = {spec.name: spec for spec in found if spec.system == "credit_risk"}
    if system not in credit:
        raise UserError(
            f"no credit model is named {system!r}",
            where=str(spec_file) if spec_file else "MLOPS_ASSETS_SPECS",
            remedy=f"name one of {', '.join(sorted(credit)) or 'none'}, or give its file with --spec.",
        )
    place = environment.current()
    with open_instance(place) as instance:
        yield Desk(place, instance, credit[system])


def _console() -> Any:
    from mlops_assets.cli import console

    return console()


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*["" if cell is None else escape(str(cell)) for cell in row])
    _console().print(table)


def _told(text: str) -> None:
    from rich.markup import escape

    _console().print(f"[green]done[/] {escape(text)}")


@click.command()
@_SYSTEM
@click.option("--version", type=int, required=True, help="The proposed version.")
@click.option("--evidence", help="SHA-256 of the evidence you looked at; refused unless the proposal rests on it.")
@_BY
@_REASON
@_SPEC
def approve(system: str, version: int, evidence: str | None, by: str, reason: str, spec_file: Path | None) -> None:
    """Approve a proposed version of SYSTEM: it serves from then on. Whoever trained it cannot."""
    with desk(system, spec_file) as at:
        record = at.history.approve(version, by, reason, evidence_sha256=evidence)
    _told(f"{system}: version {record.from_version or 'none'} -> {record.version}, approved by {record.by}.")


@click.command()
@_SYSTEM
@click.option("--version", type=int, required=True, help="The proposed version.")
@_BY
@_REASON
@_SPEC
def reject(system: str, version: int, by: str, reason: str, spec_file: Path | None) -> None:
    """Reject a proposed version of SYSTEM: nothing moves, and it is not proposed again by itself."""
    with desk(system, spec_file) as at:
        at.history.reject(version, by, reason)
    _told(f"{system}: version {version} is rejected; the champion stays.")


@click.command()
@_SYSTEM
@_SPEC
def proposals(system: str, spec_file: Path | None) -> None:
    """List the proposals of SYSTEM, and why those that cannot be approved cannot."""
    with desk(system, spec_file) as at:
        rows = [
            (
                each.record.candidate,
                each.status,
                each.record.trained_by,
                each.record.expires_at,
                each.record.evidence_sha256,
                each.why or each.record.reason,
            )
            for each in at.history.proposals()
        ]
    _table(f"{system}: proposals", ["version", "status", "trained by", "expires", "evidence", "why"], rows)


@click.command("production-at")
@_SYSTEM
@click.argument("time")
@_SPEC
def production_at(system: str, time: str, spec_file: Path | None) -> None:
    """Print which version of SYSTEM served at TIME, such as 2026-11-23T06:00:00+00:00, and why."""
    moment = moment_of(time)
    with desk(system, spec_file) as at:
        record = at.history.production_at(moment)
    if record is None:
        _console().print(f"{system}: no version served at {moment.isoformat()}")
        return
    rows = [
        ("version", record.version), ("sha256", record.sha256), ("since", record.logged_at),
        ("verdict", record.verdict), ("by", record.by), ("reason", record.reason), ("evidence", record.evidence_sha256),
    ]  # fmt: skip
    _table(f"{system} at {moment.isoformat()}", ["", ""], rows)


def moment_of(text: str) -> datetime:
    """Return a moment that a person wrote.

    Raises
    ------
    UserError
        It is no ISO 8601 time, or has no zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no time", remedy="write one such as 2026-11-23T06:00:00+00:00.") from error
    if moment.tzinfo is None:
        raise UserError(f"{text!r} has no time zone", remedy="write one such as 2026-11-23T06:00:00+00:00.")
    return moment


@click.command("incidents")
@_SYSTEM
@click.option("--all", "everything", is_flag=True, help="Also those that are settled.")
@click.option("--acknowledge", "incident", metavar="ID", help="Settle this one; needs --by and --reason.")
@click.option(
    "--as",
    "outcome",
    type=click.Choice(["waived", "resolved"]),
    default="waived",
    show_default=True,
    help="waived: the batch counts as it is; resolved: another delivery replaces it.",
)
@click.option("--by", metavar="NAME", help="Who settles it.")
@click.option("--reason", help="Why.")
@_SPEC
def incidents_command(
    system: str, everything: bool, incident: str | None, outcome: str, by: str | None, reason: str | None,
    spec_file: Path | None,
) -> None:  # fmt: skip
    """List the data incidents of SYSTEM, or settle one with a reason."""
    from mlops_assets.credit_risk import incidents, settling

    with desk(system, spec_file) as at:
        if incident is not None:
            told = settling.settle(
                at.spec, at.operations, at.resources["warehouse"], incident,
                by=by or "", reason=reason or "", outcome=outcome,
            )  # fmt: skip
            _told(told)
            return
        found = incidents.history(at.operations) if everything else incidents.open_incidents(at.operations)
    rows = [
        (each.id, each.state, each.period, each.rule, each.column, each.value, each.bound, each.by, each.reason)
        for each in found
    ]
    columns = ["incident", "state", "period", "rule", "column", "value", "bound", "by", "reason"]
    _table(f"{system}: {len(rows)} data incident(s)", columns, rows)


@click.command("training")
@_SYSTEM
@click.argument("what", type=click.Choice(["freeze", "unfreeze", "request"]))
@_BY
@_REASON
@_SPEC
def training_command(system: str, what: str, by: str, reason: str, spec_file: Path | None) -> None:
    """Freeze or unfreeze the trainings of SYSTEM, or request one from its sensor."""
    from mlops_assets.credit_risk import incidents

    acts = {"freeze": incidents.freeze, "unfreeze": incidents.unfreeze, "request": incidents.request_retrain}
    with desk(system, spec_file) as at:
        acts[what](at.operations, by=by, reason=reason)
    _told(f"{system}: {what} by {by} is noted.")


@click.command()
@_SYSTEM
@click.argument("decision")
@_SPEC
def trace(system: str, decision: str, spec_file: Path | None) -> None:
    """Print the chain behind one DECISION (or application): model, training set, source row, code, checks, approval."""
    with desk(system, spec_file) as at:
        traces = at.tracer.trace(decision)
    for found in traces:
        _table(f"{system}: decision {found.decision_id}", ["link", "what"], found.rows())


@click.command()
@_SYSTEM
@click.argument("decision", required=False)
@click.option("--all", "everything", is_flag=True, help="Every decision, or those of a time range.")
@click.option("--from", "since", metavar="TIME", help="First moment, with a zone.")
@click.option("--to", "until", metavar="TIME", help="Last moment, with a zone.")
@_SPEC
def replay(
    system: str, decision: str | None, everything: bool, since: str | None, until: str | None, spec_file: Path | None
) -> None:
    """Make decisions again from their records and compare every byte of their results."""
    if (decision is None) == (not everything):
        raise UserError("which decisions?", where="replay", remedy="name one decision, or give --all.")
    with desk(system, spec_file) as at:
        problems = at.tracer.verify_log()
        found = at.tracer.replay(
            decision, since=moment_of(since) if since else None, until=moment_of(until) if until else None
        )
    for problem in problems:
        _console().print(f"[bold red]broken[/] {problem}", markup=True)
    for each in found.differing[:20]:
        _table(f"{each.decision_id} differs", ["what", "recorded", "replayed"], each.rows())
    _console().print(f"{found.equal} of {found.compared} decisions are byte-equal")
    if found.differing or problems:
        raise UserError(
            f"{len(found.differing)} decision(s) differ, {len(problems)} entries of the log are broken",
            where=f"{system} decisions",
            remedy="the entries are named above: restore the log, the model files or the code that they name.",
        )


@click.command()
@_SYSTEM
@click.option("--model", type=int, help="A model version.")
@click.option("--batch", help="A batch of applications, by its id.")
@click.option("--rule", help="A rule that decided, or that quarantined.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write every touched decision to this file.")
@_SPEC
def impact(
    system: str, model: int | None, batch: str | None, rule: str | None, csv_file: Path | None, spec_file: Path | None
) -> None:
    """List every decision of SYSTEM that a model, a batch or a rule has touched."""
    if sum(each is not None for each in (model, batch, rule)) != 1:
        raise UserError("the impact of what?", where="impact", remedy="give one of --model, --batch and --rule.")
    with desk(system, spec_file) as at:
        found = at.tracer.impact(model=model, batch=batch, rule=rule)
    if csv_file is not None:
        found.frame.to_csv(csv_file, index=False)
    _table(f"{system}: {len(found.frame)} decision(s) touched", ["", ""], found.rows())
    shown = found.frame.head(20)
    _table("the first ones", list(shown.columns), shown.to_numpy().tolist())


@click.command()
@_SYSTEM
@click.option("--model", type=int, required=True, help="The version whose decisions are re-scored by the champion.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write old and new, side by side, to this file."
)
@_BY
@_REASON
@_SPEC
def rescore(system: str, model: int, csv_file: Path | None, by: str, reason: str, spec_file: Path | None) -> None:
    """Decide again what a version of SYSTEM decided, with the champion of now; old and new stay side by side."""
    with desk(system, spec_file) as at:
        found = at.tracer.rescore(model=model, by=by, reason=reason)
    if csv_file is not None:
        found.frame.to_csv(csv_file, index=False)
    _table(f"{system}: decisions of version {model}, re-scored by version {found.version}", ["", ""], found.rows())
    shown = found.changed.head(20)
    _table(f"{len(found.changed)} changed; the first ones", list(shown.columns), shown.to_numpy().tolist())


@click.command()
@_SYSTEM
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=int)
@_SPEC
def serve(system: str, host: str, port: int, spec_file: Path | None) -> None:
    """Serve decisions of SYSTEM over HTTP: POST /v1/credit/decisions. Tokens: MLOPS_ASSETS_SERVICE_TOKENS."""
    from mlops_assets.credit_risk.api import serve_system

    with desk(system, spec_file) as at:
        serve_system(at.spec, at.place, at.instance, host=host, port=port)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3070, show_default=True, type=int)
def reports(host: str, port: int) -> None:
    """Show model cards and drift reports at the address that the UI's links point to."""
    from mlops_assets import environment
    from mlops_assets.foundation.reports import serve_reports

    serve_reports(environment.current().resources()["store"].path(), host=host, port=port)


COMMANDS: tuple[click.Command, ...] = (
    approve, reject, proposals, production_at, incidents_command, training_command, trace, replay, impact, rescore,
    serve, reports,
)  # fmt: skip
