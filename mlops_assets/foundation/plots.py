"""Small pictures for people: sparklines that show inline, charts that open in a dialog.

What belongs here: numbers in, SVG or PNG out. What does not: Dagster's metadata values (metadata.py).
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _ACCENT, _GRID = "#334155", "#2563eb", "#cbd5e1"
_MAX_PNG = 30_000
_MOST_LINES = 12


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


def intervals(rows: Mapping[str, tuple[float, float, float]], *, title: str, axis: str) -> bytes:
    """Draw one dot with its interval a row; the first row is the one that is judged.

    Parameters
    ----------
    rows
        Name to (value, low, high).

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
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
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
