"""The commands about single decisions: what is behind one, what touched which, and deciding again.

What belongs here: arguments and tables for a person. What does not: any work (`credit_risk/tracing.py`), and the
commands about the system as a whole (`cli_credit.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlops_assets.cli_credit import BY, REASON, SPEC, SYSTEM, desk, moment_of
from mlops_assets.foundation.errors import UserError
from mlops_assets.terminal import console, done, escaped, table

_SHOWN = 20
_TOUCHED = ("decision_id", "application_id", "period", "decision", "rule", "pd", "points", "theme")
_CHANGED = (
    "application_id", "decision_before", "decision_after", "rule_before", "rule_after", "pd_before", "pd_after",
)  # fmt: skip


@click.command()
@SYSTEM
@click.argument("decision")
@SPEC
def trace(system: str, decision: str, spec_file: Path | None) -> None:
    """Print the chain behind one DECISION (or application): model, training set, source row, code, checks, approval."""
    with desk(system, spec_file) as at:
        traces = at.tracer.trace(decision)
    for found in traces:
        table(f"{system}: decision {found.decision_id}", ["link", "what"], found.rows())


@click.command()
@SYSTEM
@click.argument("decision", required=False)
@click.option("--all", "everything", is_flag=True, help="Every decision, or those of a time range.")
@click.option("--from", "since", metavar="TIME", help="First moment, with a zone.")
@click.option("--to", "until", metavar="TIME", help="Last moment, with a zone.")
@SPEC
def replay(
    system: str, decision: str | None, everything: bool, since: str | None, until: str | None, spec_file: Path | None
) -> None:
    """Make decisions again from their records and compare every byte of their results."""
    if (decision is None) == (not everything) or (decision is not None and (since, until) != (None, None)):
        raise UserError(
            "it is not said which decisions",
            where="replay",
            remedy="name one decision, or give --all; --from and --to go with --all.",
        )
    first = None if since is None else moment_of(since, "--from")
    last = None if until is None else moment_of(until, "--to")
    with desk(system, spec_file) as at:
        problems = at.tracer.verify_log()
        found = at.tracer.replay(decision, since=first, until=last)
    for problem in problems:
        console().print(f"[bold red]broken[/] {escaped(problem)}")
    for each in found.differing[:_SHOWN]:
        table(f"{each.decision_id} differs", ["what", "recorded", "replayed"], each.rows())
    console().print(f"{found.equal} of {found.compared} decisions are byte-equal")
    if found.differing or problems:
        raise UserError(
            f"{found.different} decision(s) differ, {len(problems)} entries of the log are broken",
            where=f"{system} decisions",
            remedy="the entries are named above: restore the log, the model files or the code that they name.",
        )


@click.command()
@SYSTEM
@click.option("--model", type=int, help="A model version.")
@click.option("--batch", help="A batch of applications, by its id.")
@click.option("--rule", help="A rule that decided, or that quarantined.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write every touched decision to this file.")
@SPEC
def impact(
    system: str, model: int | None, batch: str | None, rule: str | None, csv_file: Path | None, spec_file: Path | None
) -> None:
    """List every decision of SYSTEM that a model, a batch or a rule has touched."""
    if sum(each is not None for each in (model, batch, rule)) != 1:
        raise UserError(
            "it is not said the impact of what", where="impact", remedy="give one of --model, --batch and --rule."
        )
    _must_be_writable(csv_file)
    with desk(system, spec_file) as at:
        found = at.tracer.impact(model=model, batch=batch, rule=rule)
    table(f"{system}: {len(found.frame)} decision(s) touched", ["", ""], found.rows())
    _show("the first ones", found.frame, _TOUCHED)
    if found.frame.empty and model is None:
        console().print(
            f"Is the name right? Batches are in the table {system}.batches; status counts what broke which rule."
        )
    _write(found.frame, csv_file)


@click.command()
@SYSTEM
@click.option("--model", type=int, required=True, help="The version whose decisions are re-scored by the champion.")
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path), help="Write old and new, side by side, to this file."
)
@BY
@REASON
@SPEC
def rescore(system: str, model: int, csv_file: Path | None, by: str, reason: str, spec_file: Path | None) -> None:
    """Decide again what a version of SYSTEM decided, with the champion of now; old and new stay side by side."""
    _must_be_writable(csv_file)
    with desk(system, spec_file) as at:
        found = at.tracer.rescore(model=model, by=by, reason=reason)
    table(f"{system}: decisions of version {model}, re-scored by version {found.version}", ["", ""], found.rows())
    _show(f"{len(found.changed)} changed; the first ones", found.changed, _CHANGED)
    _write(found.frame, csv_file)


def _must_be_writable(path: Path | None) -> None:
    """Refuse a file that cannot be written before anything is done.

    Raises
    ------
    UserError
        There is no such folder, or it is one.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise UserError(what, where=str(path), remedy="name a file in a folder that exists.")


def _write(frame: Any, path: Path | None) -> None:
    if path is None:
        return
    try:
        frame.to_csv(path, index=False)
    except OSError as error:
        remedy = "name a file that you may write."
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path), remedy=remedy) from error
    done(f"{len(frame)} row(s) written to {path}")


def _show(title: str, frame: Any, columns: Sequence[str]) -> None:
    """Print the first rows of what a file would hold in full."""
    shown = frame[list(columns)].head(_SHOWN).round(4).astype(object)
    if len(shown):
        table(title, columns, shown.where(shown.notna(), None).to_numpy().tolist())


COMMANDS: tuple[click.Command, ...] = (trace, replay, impact, rescore)
