"""The `mlops-assets` command.

What belongs here: arguments, progress and tables for a person. What does not: any work (running.py and the systems).
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mlops_assets import __version__, cli_credit, cli_trace
from mlops_assets.foundation.errors import UserError
from mlops_assets.systems import SYSTEMS, load_any_spec
from mlops_assets.terminal import chosen_periods, console, done, escaped, progress, table, told


class _Group(click.Group):
    """Prints a user's mistake as one message and leaves the traceback to programming errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            from rich.console import Console

            Console(stderr=True).print(f"[bold red]Error[/] {escaped(str(error))}", soft_wrap=True)
            ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Machine-learning products on Dagster: run, read, watch, roll back.

    Settings come from the environment and from a file .env in the current folder; the environment wins.
    """
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")


@main.command()
@click.option("--system", type=click.Choice(["all", *SYSTEMS]), default="all", show_default=True, help="Which system.")
@click.option("--users", default=2_000, show_default=True, help="Users of the listening world, 200 to 1,000,000.")
@click.option("--weeks", default=13, show_default=True, help="Weeks of listening (at least 4).")
@click.option(
    "--applications", default=40, show_default=True, type=click.IntRange(20, 1_000), help="Loan applications a day."
)
def demo(system: str, users: int, weeks: int, applications: int) -> None:
    """Run the systems on their sample worlds: playlists for two weeks; a loan book with a shock and a bad model."""
    from mlops_assets.demo_credit import tell

    if system in {"all", "discover_weekly"}:
        _demo_playlists(users, weeks)
    if system in {"all", "credit_risk"}:
        tell(applications)
    console().print(
        "\nNext: [bold]make dev[/] shows all of it in the Dagster UI; [bold]mlops-assets status[/] prints where things "
        "stand; [bold]mlops-assets playlist u0000001[/] prints one playlist."
    )


def _demo_playlists(users: int, weeks: int) -> None:
    from mlops_assets.discover_weekly.spec import parse_spec

    if weeks < 4:
        raise UserError(f"{weeks} weeks are too few to train, choose and judge on", remedy="use at least 4 weeks.")
    sample = {"kind": "sample", "users": users, "weeks": weeks}
    shards = max(4, min(256, users // 5_000))
    raw = {"data": {"listens": sample}, "playlist": {"shards": shards}}
    spec = parse_spec(raw, where="demo", base=Path.cwd())
    last = spec.periods.shift(spec.periods.start.isoformat(), weeks - 1)
    _run_playlists(spec, first=None, last=last, publish=2)


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="PERIOD", help="First period to ingest; by default the spec's first.")
@click.option("--to", "last", metavar="PERIOD", help="Last period; by default the last one that is complete.")
@click.option(
    "--publish",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="For how many of the last periods to write playlists; of a credit model, to decide and watch.",
)
def run(spec: Path, first: str | None, last: str | None, publish: int) -> None:
    """Run the whole pipeline that SPEC describes: ingestion, models, verdict, and playlists or decisions."""
    loaded = load_any_spec(spec)
    if loaded.system == "credit_risk":
        cli_credit.run_system(loaded, spec, first=first, last=last, decide=publish)
    else:
        _run_playlists(loaded, first=first, last=last, publish=publish)


def _run_playlists(spec: Any, *, first: str | None, last: str | None, publish: int) -> None:
    from mlops_assets import environment
    from mlops_assets.definitions import build_defs
    from mlops_assets.discover_weekly.names import Names
    from mlops_assets.running import open_instance, run_job

    place = environment.current()
    screen = console()
    started = time.monotonic()
    periods = chosen_periods(spec, Names(spec).partitions.get_partition_keys(), first, last)
    published = periods[-min(publish, len(periods)) :]
    with screen.status("loading the code location"):
        defs = build_defs(place, [spec])
    screen.print(f"[bold]{spec.name}[/]: {len(periods)} period(s), {periods[0]} to {periods[-1]}; home {place.home}")
    with open_instance(place) as instance:
        warnings: dict[str, str] = {}
        before = [period for period in periods if period < published[0]]
        plan = [(f"{spec.name}_ingest", before, f"history {before[0]} to {before[-1]}")] if before else []
        plan += [(f"{spec.name}_refresh", [period], f"period {period}") for period in published]
        for job, span, label in plan:
            with progress(label) as follow:
                run_job(defs.resolve_job_def(job), instance, follow, periods=span, name=f"{spec.name}, {label}")
            warnings |= {text.split(": ", 1)[0]: text for text in follow.warnings}
        told(list(warnings.values()))
        _print_status(spec.name, spec.system, place, instance)
    screen.print(f"done in {time.monotonic() - started:.0f} s")


@main.command()
@click.argument("user")
@click.option("--system", default="discover_weekly", show_default=True)
@click.option("--week", "--period", "period", help="First day of the period; by default the last one published.")
def playlist(user: str, system: str, period: str | None) -> None:
    """Print the published playlist of USER."""
    from rich.table import Table

    from mlops_assets import environment
    from mlops_assets.discover_weekly.reading import playlist_of

    found = playlist_of(environment.current(), system, user, period)
    first = found.rows.iloc[0]
    version = f"version {first['model_version']}" if first["model_version"] else "no model"
    shown_rows = Table(title=f"{user}, {system} after {found.period}", caption=f"{version}, run {first['run_id']}")
    shown = ["rank", "track_id", "title", "artist_id", "score", "source"]
    for name in shown:
        shown_rows.add_column(name, justify="right" if name in {"rank", "score"} else "left")
    for row in found.rows[shown].itertuples(index=False):
        shown_rows.add_row(*[_cell(value) for value in row])
    console().print(shown_rows)


def _cell(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - nan is what differs from itself
        return ""
    return f"{value:.4f}" if isinstance(value, float) else escaped(str(value))


@main.command()
@click.option("--system", "systems", multiple=True, help="Only these systems.")
def status(systems: Sequence[str]) -> None:
    """Print champions, what was delivered last, open incidents and the latest checks."""
    from mlops_assets import environment
    from mlops_assets.running import open_instance
    from mlops_assets.systems import known_systems

    place = environment.current()
    with open_instance(place) as instance:
        known = known_systems(instance)
        unknown = sorted(set(systems) - set(known))
        if unknown:
            raise UserError(
                f"no such system has run: {', '.join(unknown)}",
                where=str(place.home),
                remedy=f"name one of {', '.join(known)}." if known else "nothing has run yet: try `mlops-assets demo`.",
            )
        names = list(systems) or list(known)
        if not names:
            console().print("nothing has run yet: try [bold]mlops-assets demo[/]")
        for name in names:
            _print_status(name, known[name], place, instance)


def _print_status(name: str, system: str, place: Any, instance: Any) -> None:
    from mlops_assets.credit_risk.reading import status_rows
    from mlops_assets.discover_weekly.reading import status_of
    from mlops_assets.systems import spec_named

    if system == "credit_risk":
        table(name, ["", ""], status_rows(spec_named(name, system), place, instance))
    else:
        table(name, ["", ""], status_of(place, instance, name).rows())


@main.command()
@click.argument("system")
@click.option("--to", "version", required=True, type=int, help="The version that shall serve again.")
@click.option("--reason", required=True, help="Why; it goes into the champion's history.")
@click.option("--by", default=None, help="Who; by default the user of this machine.")
def rollback(system: str, version: int, reason: str, by: str | None) -> None:
    """Make an earlier champion of SYSTEM the champion again, after its files were verified."""
    import getpass

    from mlops_assets import environment
    from mlops_assets.running import open_instance
    from mlops_assets.systems import history_named

    place = environment.current()
    with open_instance(place) as instance:
        history = history_named(system, instance, place)
        record = history.rollback(version, by or getpass.getuser(), reason)
    before = record.from_version
    done(f"{system}: version {before} -> {record.version}; the next batch uses it.")


for _command in (*cli_credit.COMMANDS, *cli_trace.COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    sys.exit(main())
