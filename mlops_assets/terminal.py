"""What a person sees in a terminal: progress of runs, tables, one line for what is done.

What belongs here: words and tables. What does not: which commands there are (`cli.py`) and what they do.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlops_assets.foundation.errors import UserError


def console() -> Any:
    """Return the console that a person reads."""
    from rich.console import Console

    # Bound now: while a job runs, what others print goes to its log.
    return Console(file=sys.stdout, soft_wrap=True)


def escaped(text: object) -> str:
    """Return text in which nothing is taken for markup."""
    from rich.markup import escape

    return escape(str(text))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows; without column names, as pairs of name and value."""
    from rich.table import Table

    shown = Table(title=title, title_justify="left", show_header=any(columns))
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*["" if cell is None else escaped(cell) for cell in row])
    console().print(shown)


def done(text: str) -> None:
    """Print one line about what is done."""
    console().print(f"[green]done[/] {escaped(text)}")


def told(warnings: Sequence[str]) -> None:
    """Print what checks said: what was not assessed as a note, the rest as a warning."""
    for text in warnings:
        unknown = ": Not assessed: " in text
        console().print(f"[dim]note[/] {escaped(text)}" if unknown else f"[yellow]warning[/] {escaped(text)}")


@contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[Any]:
    """Show the running step, its last message, and the seconds of each finished step (not these where ``quiet``)."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from mlops_assets.running import Follow

    screen = console()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=screen, transient=True
    ) as bar:
        task = bar.add_task(label)
        current = {"step": ""}

        def on_step(step: str, seconds: float | None) -> None:
            short = step.split("__", 1)[-1]
            if seconds is None:
                current["step"] = short
                bar.update(task, description=f"{label}: {short}")
            elif not quiet:
                screen.print(f"  [green]done[/] {short} [dim]{seconds:.1f} s[/]")

        def on_message(text: str) -> None:
            bar.update(task, description=f"{label}: {current['step']}: {escaped(text[:100])}")

        screen.print(f"[bold]{label}[/]")
        yield Follow(on_step, on_message)


def chosen_periods(spec: Any, keys: Sequence[str], first: str | None, last: str | None) -> list[str]:
    """Return the periods of a spec that a person asked for.

    Raises
    ------
    UserError
        There are no such complete periods.
    """
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
