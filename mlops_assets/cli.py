"""The `mlops-assets` command.

What belongs here: arguments, progress and tables for a person. What does not: any work (running.py and the systems).
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlops_assets import __version__
from mlops_assets.foundation.errors import UserError


class _Group(click.Group):
    """Prints a user's mistake as one message and leaves the traceback to programming errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            from rich.console import Console

            Console(stderr=True).print(f"[bold red]Error[/] {_escaped(str(error))}", soft_wrap=True)
            ctx.exit(1)


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Machine-learning products on Dagster: run, read, watch, roll back.

    Settings come from the environment and from a file .env in the current folder; the environment wins.
    """
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _console() -> Any:
    from rich.console import Console

    # Bound now: while a job runs, what others print goes to its log.
    return Console(file=sys.stdout, soft_wrap=True)


@main.command()
@click.option("--users", default=2_000, show_default=True, help="Users of the sample world, 200 to 1,000,000.")
@click.option("--weeks", default=13, show_default=True, help="Weeks of listening (at least 4).")
def demo(users: int, weeks: int) -> None:
    """Run the playlist system on its sample world: data, models, verdict and two weeks of playlists."""
    from mlops_assets.discover_weekly.spec import parse_spec

    if weeks < 4:
        raise UserError(f"{weeks} weeks are too few to train, choose and judge on", remedy="use at least 4 weeks.")
    sample = {"kind": "sample", "users": users, "weeks": weeks}
    shards = max(4, min(256, users // 5_000))
    raw = {"data": {"listens": sample}, "playlist": {"shards": shards}}
    spec = parse_spec(raw, where="demo", base=Path.cwd())
    last = spec.periods.shift(spec.periods.start.isoformat(), weeks - 1)
    _run_spec(spec, first=None, last=last, publish=2)
    _console().print("\nNext: [bold]make dev[/] shows all of it in the Dagster UI; "
                     "[bold]mlops-assets playlist u0000001[/] prints one playlist.")  # fmt: skip


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="PERIOD", help="First period to ingest; by default the spec's first.")
@click.option("--to", "last", metavar="PERIOD", help="Last period; by default the last one that is complete.")
@click.option(
    "--publish",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="For how many of the last periods to write playlists.",
)
def run(spec: Path, first: str | None, last: str | None, publish: int) -> None:
    """Run the whole pipeline that SPEC describes: ingestion, models, verdict, playlists."""
    from mlops_assets.discover_weekly.spec import load_spec

    _run_spec(load_spec(spec), first=first, last=last, publish=publish)


def _run_spec(spec: Any, *, first: str | None, last: str | None, publish: int) -> None:
    from mlops_assets import environment
    from mlops_assets.definitions import build_defs
    from mlops_assets.discover_weekly.names import Names
    from mlops_assets.running import open_instance, run_job

    place = environment.current()
    console = _console()
    started = time.monotonic()
    periods = _periods(spec, Names(spec).partitions.get_partition_keys(), first, last)
    published = periods[-min(publish, len(periods)) :]
    with console.status("loading the code location"):
        defs = build_defs(place, [spec])
    console.print(f"[bold]{spec.name}[/]: {len(periods)} period(s), {periods[0]} to {periods[-1]}; home {place.home}")
    with open_instance(place) as instance:
        warnings: dict[str, str] = {}
        before = [period for period in periods if period < published[0]]
        plan = [(f"{spec.name}_ingest", before, f"history {before[0]} to {before[-1]}")] if before else []
        plan += [(f"{spec.name}_refresh", [period], f"period {period}") for period in published]
        for job, span, label in plan:
            with _progress(console, label) as follow:
                run_job(defs.resolve_job_def(job), instance, follow, periods=span, name=f"{spec.name}, {label}")
            warnings |= {text.split(": ", 1)[0]: text for text in follow.warnings}
        for text in warnings.values():
            unknown = ": Not assessed: " in text
            console.print(f"[dim]note[/] {_escaped(text)}" if unknown else f"[yellow]warning[/] {_escaped(text)}")
        _print_status(console, spec, place, instance)
    console.print(f"done in {time.monotonic() - started:.0f} s")


def _periods(spec: Any, keys: Sequence[str], first: str | None, last: str | None) -> list[str]:
    if not spec.data.timed:
        return [spec.periods.start.isoformat()]
    chosen = [key for key in keys if (first is None or key >= first) and (last is None or key <= last)]
    if not chosen or (last is not None and chosen[-1] != last) or (first is not None and chosen[0] != first):
        ends = f"{keys[0]} to {keys[-1]}" if keys else f"none: {spec.periods.start} has not ended yet"
        raise UserError(
            f"no such periods: {first or 'the first'} to {last or 'the last'}",
            where=spec.name,
            remedy=f"complete periods are {ends}; a period is named by its first day.",
        )
    return chosen


@contextmanager
def _progress(console: Any, label: str) -> Iterator[Any]:
    """Show the running step, its last message, and the seconds of each finished step."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from mlops_assets.running import Follow

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(label)
        current = {"step": ""}

        def on_step(step: str, seconds: float | None) -> None:
            short = step.split("__", 1)[-1]
            if seconds is None:
                current["step"] = short
                bar.update(task, description=f"{label}: {short}")
            else:
                console.print(f"  [green]done[/] {short} [dim]{seconds:.1f} s[/]")

        def on_message(text: str) -> None:
            bar.update(task, description=f"{label}: {current['step']}: {_escaped(text[:100])}")

        console.print(f"[bold]{label}[/]")
        yield Follow(on_step, on_message)


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
    table = Table(title=f"{user}, {system} after {found.period}", caption=f"{version}, run {first['run_id']}")
    shown = ["rank", "track_id", "title", "artist_id", "score", "source"]
    for name in shown:
        table.add_column(name, justify="right" if name in {"rank", "score"} else "left")
    for row in found.rows[shown].itertuples(index=False):
        table.add_row(*[_cell(value) for value in row])
    _console().print(table)


def _cell(value: Any) -> str:
    if value is None or value != value:  # noqa: PLR0124 - nan is what differs from itself
        return ""
    return f"{value:.4f}" if isinstance(value, float) else _escaped(str(value))


@main.command()
@click.option("--system", "systems", multiple=True, help="Only these systems.")
def status(systems: Sequence[str]) -> None:
    """Print champions, the last period published and the latest checks."""
    from mlops_assets import environment
    from mlops_assets.discover_weekly.reading import known_systems
    from mlops_assets.running import open_instance

    place, console = environment.current(), _console()
    with open_instance(place) as instance:
        known = known_systems(instance)
        unknown = sorted(set(systems) - set(known))
        if unknown:
            raise UserError(
                f"no such system has run: {', '.join(unknown)}",
                where=str(place.home),
                remedy=f"name one of {', '.join(known)}." if known else "nothing has run yet: try `mlops-assets demo`.",
            )
        names = list(systems) or known
        if not names:
            console.print("nothing has run yet: try [bold]mlops-assets demo[/]")
        for name in names:
            _print_status(console, name, place, instance)


def _print_status(console: Any, spec: Any, place: Any, instance: Any) -> None:
    from rich.table import Table

    from mlops_assets.discover_weekly.reading import status_of

    state = status_of(place, instance, spec if isinstance(spec, str) else spec.name)
    table = Table(title=state.system, show_header=False, title_justify="left")
    for name, value in state.rows():
        table.add_row(name, _escaped(value))
    console.print(table)


@main.command()
@click.argument("system")
@click.option("--to", "version", required=True, type=int, help="The version that shall serve again.")
@click.option("--reason", required=True, help="Why; it goes into the champion's history.")
@click.option("--by", default=None, help="Who; by default the user of this machine.")
def rollback(system: str, version: int, reason: str, by: str | None) -> None:
    """Make an earlier champion of SYSTEM the champion again, after its files were verified."""
    import getpass

    from mlops_assets import environment
    from mlops_assets.foundation.registry import ChampionHistory
    from mlops_assets.running import open_instance

    place = environment.current()
    with open_instance(place) as instance:
        registry: Any = place.resources()["models"]
        history = ChampionHistory(instance, system, registry.open(), f"{system}.blend_model")
        record = history.rollback(version, by or getpass.getuser(), reason)
    before = record.from_version
    _console().print(f"[green]done[/] {system}: version {before} -> {record.version}; the next batch uses it.")


if __name__ == "__main__":
    sys.exit(main())
