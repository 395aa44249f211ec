"""Small pictures for people: sparklines that show inline, charts that open in a dialog.

What belongs here: numbers in, SVG or PNG out. What does not: Dagster's metadata values (metadata.py).
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _ACCENT, _GRID, _ALARM = "#334155", "#2563eb", "#cbd5e1", "#dc2626"
_MAX_PNG = 30_000
_MOST_LINES = 12
_MOST_BARS = 20
_MOST_TICKS = 12


def sparkline(values: Sequence[float], *, width: int = 160, height: int = 32) -> str:
    """Return an SVG line of under 1,000 characters; values that are not finite leave a gap.

    Long series are thinned to 40 points, the last one kept and marked.
    """
    points = [float(value) for value in values]
    if len(points) > 40:
        step = (len(points) - 1) / 39
        points = [points[round(index * step)] for index in range(40)]
    finite = [value for value in points if math.isfinite(value)]
    if not finite:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>'
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    dx = (width - 8) / max(len(points) - 1, 1)
    place = [
        (round(4 + index * dx), round(height - 4 - (value - low) / span * (height - 8)))
        if math.isfinite(value)
        else None
        for index, value in enumerate(points)
    ]
    path, pen_up = [], True
    for spot in place:
        if spot is None:
            pen_up = True
            continue
        path.append(f"{'M' if pen_up else 'L'}{spot[0]} {spot[1]}")
        pen_up = False
    last = next(spot for spot in reversed(place) if spot is not None)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<path d="{"".join(path)}" fill="none" stroke="{_ACCENT}" stroke-width="2"/>'
        f'<circle cx="{last[0]}" cy="{last[1]}" r="3" fill="{_ACCENT}"/></svg>'
    )


def intervals(
    rows: Mapping[str, tuple[float, float, float]], *, title: str, axis: str, bound: float | None = None
) -> bytes:
    """Draw one dot with its interval a row; the first row is the one that is judged.

    Parameters
    ----------
    rows
        Name to (value, low, high).
    bound
        Where to draw what the values are held against.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(rows)), dpi=80, layout="constrained")
    axes = figure.subplots()
    names = list(rows)[::-1]
    for at, name in enumerate(names):
        value, low, high = rows[name]
        colour = _ACCENT if name == names[-1] else _INK
        axes.plot([low, high], [at, at], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([value], [at], "o", color=colour, markersize=7)
        axes.annotate(f"{value:.4f}", (value, at), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=9)
    if bound is not None:
        axes.axvline(bound, color=_ALARM, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(names)), [_in_lines(name) for name in names], fontsize=9)
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _png(figure)


def bars(rows: Mapping[str, float], *, title: str, axis: str, beside: Mapping[str, float] | None = None) -> bytes:
    """Draw one horizontal bar a row, the first at the top, with its number at its end.

    Parameters
    ----------
    rows
        Name to value. Of more than twenty, the first twenty are drawn.
    beside
        Name to a second value, drawn as a mark on the bar, such as what was expected there.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.figure import Figure

    names = list(rows)[:_MOST_BARS][::-1]
    figure = Figure(figsize=(6.4, 0.9 + 0.26 * len(names)), dpi=80, layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(range(len(names)), [rows[name] for name in names], color=_ACCENT, height=0.66)
    labels = [f"{rows[name]:,.0f}" if abs(rows[name]) >= 1_000 else f"{rows[name]:.3g}" for name in names]
    axes.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    for at, name in enumerate(names):
        if beside and name in beside:
            axes.plot([beside[name]] * 2, [at - 0.42, at + 0.42], color=_INK, linewidth=2)
    axes.set_yticks(range(len(names)), [_in_lines(name) for name in names], fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _png(figure)


def agreement(points: Sequence[tuple[float, float, float, float]], *, title: str, axis: str, along: str) -> bytes:
    """Draw what was observed against what was foreseen; on the diagonal both are equal.

    Parameters
    ----------
    points
        (foreseen, observed, low, high), shares, the bounds being those of what was observed.
    axis, along
        What was observed, and what was foreseen.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.0, 4.4), dpi=80, layout="constrained")
    axes = figure.subplots()
    top = 1.08 * max((max(point[0], point[3]) for point in points), default=1.0) or 1.0
    axes.plot([0, top], [0, top], color=_INK, linewidth=1.0, linestyle="--")
    for foreseen, observed, low, high in points:
        agrees = low <= foreseen <= high
        axes.plot([foreseen] * 2, [low, high], color=_ACCENT if agrees else _ALARM, linewidth=1.8)
        axes.plot([foreseen], [observed], "o", color=_ACCENT if agrees else _ALARM, markersize=6)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(axis)
    axes.set_xlabel(along)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def band(
    points: Sequence[tuple[float, float, float, float]],
    *,
    title: str,
    axis: str,
    along: str,
    beside: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    marks: Mapping[str, float] | None = None,
) -> bytes:
    """Draw a curve with the band of its intervals, other curves beside it, and named places along it.

    Parameters
    ----------
    points
        (x, y, low, high).
    beside
        Name to points (x, y) of a curve to compare with.
    marks
        Name to x.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    if points:
        x, y, low, high = zip(*points, strict=True)
        axes.fill_between(x, low, high, color=_ACCENT, alpha=0.16, linewidth=0)
        axes.plot(x, y, color=_ACCENT, linewidth=2, label=axis)
    for name, others in (beside or {}).items():
        axes.plot(*zip(*others, strict=True), color=_INK, linewidth=1.2, linestyle="--", label=name)
    for (name, place), style in zip((marks or {}).items(), ["-", "--", ":", "-."] * len(marks or {}), strict=False):
        axes.axvline(place, color=_ALARM, linewidth=1.2, linestyle=style, label=f"{name}: {place:.3g}")
    axes.axhline(0, color=_INK, linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    axes.set_ylabel(axis)
    axes.set_xlabel(along)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def over_time(values: Mapping[str, float | None], *, title: str, axis: str) -> bytes:
    """Draw one value a period from 0 up (or down), in the order given; periods without one leave a gap.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.figure import Figure

    names = list(values)
    y = [math.nan if (value := values[name]) is None else value for name in names]
    figure = Figure(figsize=(6.4, 2.8), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(y)), y, color=_ACCENT, linewidth=2, marker="o", markersize=5)
    known = [value for value in y if not math.isnan(value)]
    if known:
        axes.axhline(sum(known) / len(known), color=_INK, linewidth=1.0, linestyle="--")
        low, high = min(0.0, 1.1 * min(known)), max(0.0, 1.15 * max(known))
        axes.set_ylim(low, high if high > low else 1.0)
    step = -(-len(names) // _MOST_TICKS) or 1
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8)
    axes.set_xlim(-0.5, max(len(names) - 0.5, 0.5))
    axes.set_ylabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, axis: str, along: str, percent: bool = False
) -> bytes:
    """Draw one line a name, the last one strongest; names are told apart by shade, from the first to the last.

    Parameters
    ----------
    series
        Name to points (x, y), in the order in which they are meant to be read. Of more than twelve, twelve are drawn,
        the first and the last among them. A line of one point is a dot.
    axis, along
        What y and x are.
    percent
        Whether y is a share to be shown in percent.

    Returns
    -------
    bytes
        A PNG of at most 30 kB.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = [name for name in series if series[name]]
    if len(names) > _MOST_LINES:
        names = [names[round(at * (len(names) - 1) / (_MOST_LINES - 1))] for at in range(_MOST_LINES)]
    figure = Figure(figsize=(6.4, 3.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("shades", [_GRID, _INK])
    for at, name in enumerate(names):
        last = at == len(names) - 1
        colour = _ACCENT if last else shades(0.15 + 0.85 * at / max(len(names) - 1, 1))
        marker = "o" if last or len(series[name]) == 1 else None
        x, y = zip(*series[name], strict=True)
        axes.plot(x, y, color=colour, linewidth=2.4 if last else 1.3, marker=marker, markersize=3.5, label=name)
    if names:
        axes.legend(fontsize=7, frameon=False, ncols=2 if len(names) > 6 else 1)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(axis)
    axes.set_xlabel(along)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _in_lines(name: str) -> str:
    """Break a long name into at most three lines; where it is still too long, its end is left out."""
    return "\n".join(textwrap.wrap(name, 34, max_lines=3, placeholder=" …"))


def _png(figure: "Figure") -> bytes:
    """Return a picture of at most 30 kB: in fewer colours if need be, and smaller only if that is not enough."""
    from PIL import Image

    picture = b""
    for dpi in (80, 50, 30):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi)
        picture = buffer.getvalue()
        if len(picture) > _MAX_PNG:
            fewer = io.BytesIO()
            with Image.open(buffer) as full:
                full.convert("RGB").quantize(64).save(fewer, format="png", optimize=True)
            picture = fewer.getvalue()
        if len(picture) <= _MAX_PNG:
            break
    return picture


def as_markdown(picture: bytes | str, alt: str) -> str:
    """Embed an SVG text or PNG bytes in Markdown."""
    kind, data = ("svg+xml", picture.encode()) if isinstance(picture, str) else ("png", picture)
    return f"![{alt}](data:image/{kind};base64,{base64.b64encode(data).decode()})"
