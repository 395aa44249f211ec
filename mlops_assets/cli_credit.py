"""The commands about credit models: run, approve, settle, serve.

What belongs here: arguments and tables for a person. What does not: any work (the system's own modules), and the
commands about single decisions (`cli_trace.py`).
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from mlops_assets.foundation.errors import UserError
from mlops_assets.terminal import chosen_periods, console, done, escaped, progress, table, told

SYSTEM = click.argument("system")
BY = click.option("--by", required=True, metavar="NAME", help="Who decides; it goes into the history.")
REASON = click.option("--reason", required=True, help="Why; it goes into the history.")
SPEC = click.option(
    "--spec", "spec_file", type=click.Path(path_type=Path), help="The system's YAML file, where it is not configured."
)
PORT = click.IntRange(0, 65_535)


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


@click.command()
@SYSTEM
@click.option("--version", type=int, required=True, help="The proposed version.")
@click.option("--evidence", help="SHA-256 of the evidence you looked at; refused unless the proposal rests on it.")
@BY
@REASON
@SPEC
def approve(system: str, version: int, evidence: str | None, by: str, reason: str, spec_file: Path | None) -> None:
    """Approve a proposed version of SYSTEM: it serves from then on. Whoever trained it cannot."""
    with desk(system, spec_file) as at:
        record = at.history.approve(version, by, reason, evidence_sha256=evidence)
    done(f"{system}: version {record.from_version or 'none'} -> {record.version}, approved by {record.by}.")


@click.command()
@SYSTEM
@click.option("--version", type=int, required=True, help="The proposed version.")
@BY
@REASON
@SPEC
def reject(system: str, version: int, by: str, reason: str, spec_file: Path | None) -> None:
    """Reject a proposed version of SYSTEM: nothing moves, and it is not proposed again by itself."""
    with desk(system, spec_file) as at:
        at.history.reject(version, by, reason)
    done(f"{system}: version {version} is rejected; the champion stays.")


@click.command()
@SYSTEM
@SPEC
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
    table(f"{system}: proposals", ["version", "status", "trained by", "expires", "evidence", "why"], rows)


@click.command("production-at")
@SYSTEM
@click.argument("time")
@SPEC
def production_at(system: str, time: str, spec_file: Path | None) -> None:
    """Print which version of SYSTEM served at TIME, such as 2026-11-23T06:00:00+00:00, and why."""
    moment = moment_of(time, "production-at")
    with desk(system, spec_file) as at:
        record = at.history.production_at(moment)
    if record is None:
        console().print(f"{system}: no version served at {moment.isoformat()}")
        return
    rows = [
        ("version", record.version), ("sha256", record.sha256), ("since", record.logged_at),
        ("verdict", record.verdict), ("by", record.by), ("reason", record.reason), ("evidence", record.evidence_sha256),
    ]  # fmt: skip
    table(f"{system} at {moment.isoformat()}", ["", ""], rows)


def moment_of(text: str, where: str) -> datetime:
    """Return a moment that a person wrote.

    Raises
    ------
    UserError
        It is no ISO 8601 time, or has no zone.
    """
    remedy = "write one such as 2026-11-23T06:00:00+00:00."
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no time", where=where, remedy=remedy) from error
    if moment.tzinfo is None:
        raise UserError(f"{text!r} has no time zone", where=where, remedy=remedy)
    return moment


@click.command("incidents")
@SYSTEM
@click.argument("action", required=False, type=click.Choice(["acknowledge"]))
@click.argument("incident", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that are settled.")
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
@SPEC
def incidents_command(
    system: str, action: str | None, incident: str | None, everything: bool, outcome: str, by: str | None,
    reason: str | None, spec_file: Path | None,
) -> None:  # fmt: skip
    """List the data incidents of SYSTEM, or settle one: incidents SYSTEM acknowledge ID --by NAME --reason TEXT."""
    from mlops_assets.credit_risk import incidents, settling

    if (action is None) != (None in {incident, by, reason}):
        raise click.UsageError("To settle one: incidents SYSTEM acknowledge ID --by NAME --reason TEXT.")
    with desk(system, spec_file) as at:
        if incident is not None and by is not None and reason is not None:
            warehouse = at.resources["warehouse"]
            settled = settling.settle(
                at.spec, at.operations, warehouse, incident, by=by, reason=reason, outcome=outcome
            )
            done(settled)
            return
        found = incidents.history(at.operations) if everything else incidents.open_incidents(at.operations)
    rows = [(each.id, each.state, each.period, each.rule, each.column, each.details, each.by, each.reason)
            for each in found]  # fmt: skip
    columns = ["incident", "state", "period", "rule", "column", "what", "by", "reason"]
    table(f"{system}: {len(rows)} data incident(s)", columns, rows)


@click.command("training")
@SYSTEM
@click.argument("what", type=click.Choice(["freeze", "unfreeze", "request"]))
@BY
@REASON
@SPEC
def training_command(system: str, what: str, by: str, reason: str, spec_file: Path | None) -> None:
    """Freeze or unfreeze the trainings of SYSTEM, or request one from its sensor."""
    from mlops_assets.credit_risk import incidents

    acts = {"freeze": incidents.freeze, "unfreeze": incidents.unfreeze, "request": incidents.request_retrain}
    with desk(system, spec_file) as at:
        acts[what](at.operations, by=by, reason=reason)
    done(f"{system}: {what} by {by} is noted.")


@click.command()
@SYSTEM
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=PORT, help="0 takes a free one.")
@SPEC
def serve(system: str, host: str, port: int, spec_file: Path | None) -> None:
    """Serve decisions of SYSTEM over HTTP: POST /v1/credit/decisions. Tokens: MLOPS_ASSETS_SERVICE_TOKENS."""
    from mlops_assets.credit_risk.api import serve_system

    with desk(system, spec_file) as at:
        serve_system(at.spec, at.place, at.instance, host=host, port=port)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3070, show_default=True, type=PORT, help="0 takes a free one.")
def reports(host: str, port: int) -> None:
    """Show model cards and drift reports at the address that the UI's links point to."""
    from mlops_assets import environment
    from mlops_assets.foundation.reports import serve_reports

    store: Any = environment.current().resources()["store"]
    serve_reports(store.path(), host=host, port=port)


def run_system(spec: Any, file: Path, *, first: str | None, last: str | None, decide: int) -> None:
    """Take in the applications of a spec and train as of its last period; where a champion serves, decide as well."""
    from mlops_assets import environment
    from mlops_assets.credit_risk.names import Names
    from mlops_assets.credit_risk.pipeline import history_of
    from mlops_assets.definitions import build_defs
    from mlops_assets.running import open_instance, run_job

    place = environment.current()
    periods = chosen_periods(spec, Names(spec).partitions.get_partition_keys(), first, last)
    span = f"{periods[0]} to {periods[-1]}"
    with console().status("loading the code location"):
        defs = build_defs(place, [spec])
    console().print(f"[bold]{spec.name}[/]: {len(periods)} period(s), {span}; home {place.home}")
    with open_instance(place) as instance:
        history = history_of(spec, instance, place.resources()["models"].open())  # type: ignore[attr-defined]
        deciding = history.current() is not None
        decided = periods[-min(decide, len(periods)) :] if deciding else []
        before = [period for period in periods if period not in decided]
        plan = [("ingest", before, f"data {before[0]} to {before[-1]}")] if before else []
        plan += [("daily", decided, f"decisions {decided[0]} to {decided[-1]}")] if decided else []
        plan += [("train", [periods[-1]], f"training as of {periods[-1]}")]
        for job, part, label in plan:
            with progress(label) as follow:
                run_job(
                    defs.resolve_job_def(f"{spec.name}_{job}"), instance, follow, periods=part,
                    name=f"{spec.name}, {label}",
                )  # fmt: skip
            told(follow.warnings)
        show_verdict(spec, place, instance, file)


def show_verdict(spec: Any, place: Any, instance: Any, file: Path | None = None) -> None:
    """Print the latest verdict on a candidate, its gates, and what a person can do about it.

    Parameters
    ----------
    file
        That of the spec, unless the system is one of those that are configured.
    """
    from mlops_assets.credit_risk.judging import read_gates
    from mlops_assets.credit_risk.pipeline import history_of

    registry = place.resources()["models"].open()
    history = history_of(spec, instance, registry)
    records = history.records()
    if not records:
        return
    record = records[-1]
    version = registry.get(history.model, record.candidate)
    if record.evidence_sha256:
        whole = registry.evidence(version, record.evidence_sha256)
        rows = [
            (gate.gate, gate.status, _number(gate.value), _number(gate.bound), gate.reason)
            for gate in read_gates(whole["gates"])
        ]
        table(f"{version} ({version.params['kind']}): gates", ["gate", "status", "value", "bound", "what"], rows)
    console().print(f"[bold]{record.verdict}[/]: {escaped(record.reason)}")
    if record.verdict == "proposed":
        command = f"mlops-assets approve {spec.name} --version {version.version} --by NAME --reason TEXT"
        command += f" --spec {shlex.quote(str(file))}" if file is not None else ""
        console().print(
            f"Trained by {escaped(record.trained_by)}; somebody else approves it: [bold]{escaped(command)}[/]"
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


COMMANDS: tuple[click.Command, ...] = (
    approve, reject, proposals, production_at, incidents_command, training_command, serve, reports,
)  # fmt: skip
