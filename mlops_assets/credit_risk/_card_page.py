"""A printable document of its own: headings, tables, facts, pictures, and nothing from outside.

What belongs here: turning values into safe markup. What does not: what a model card says (`_card_sections.py`).

Text and markup are two types. Whatever comes from data, settings or people is `str` and is escaped where it becomes
`Html`; nothing but the functions here makes `Html`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

DASH = "–"
_NOTHING = (None, "", DASH)
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?( %)?")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1e293b; --soft: #64748b; --line: #cbd5e1; --blue: #1d4ed8; --red: #b91c1c; --amber: #92400e;
  --green: #166534; }
* { box-sizing: border-box; }
body { color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 2rem 1.5rem 4rem; }
header { border-bottom: 3px solid var(--blue); margin-bottom: 1.2rem; padding-bottom: .9rem; }
header p { color: var(--soft); margin: .2rem 0; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { border-bottom: 1px solid var(--line); font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 48rem; }
li { margin: .2rem 0; }
nav { columns: 3; column-gap: 2rem; font-size: .88rem; margin: 1.2rem 0; }
nav a { color: var(--blue); display: block; text-decoration: none; }
.tiles { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-left: 4px solid var(--blue); border-radius: 4px; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); display: block; font-size: .8rem; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .6rem 0 1rem;
  min-width: 50%; }
th { border-bottom: 2px solid var(--line); color: var(--soft); font-weight: 600; text-align: left;
  vertical-align: bottom; }
td { border-bottom: 1px solid #e2e8f0; overflow-wrap: break-word; vertical-align: top; }
th, td { padding: .26rem .8rem .26rem 0; }
th.n, td.n { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
caption { color: var(--soft); font-size: .84rem; padding-bottom: .2rem; text-align: left; }
dl { display: grid; font-size: .9rem; gap: .2rem 1.2rem; grid-template-columns: minmax(11rem, max-content) 1fr; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.pair { align-items: start; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); }
.pair dl { grid-template-columns: auto auto; }
.pair dd { overflow-wrap: break-word; }
figure { margin: .6rem 0; }
figure img { height: auto; max-width: 100%; }
figcaption { color: var(--soft); font-size: .82rem; max-width: 34rem; }
.chip { border: 1px solid currentColor; border-radius: 99px; font-size: .76rem; font-weight: 600; padding: 0 .5rem;
  white-space: nowrap; }
.passed { color: var(--green); } .failed { color: var(--red); } .not_assessed { color: var(--amber); }
.note { background: #f1f5f9; border-left: 4px solid var(--line); border-radius: 3px; max-width: 52rem;
  padding: .5rem .9rem; }
.note.failed { background: #fef2f2; border-color: var(--red); color: inherit; }
.note.not_assessed { background: #fffbeb; border-color: #d97706; color: inherit; }
footer { border-top: 1px solid var(--line); color: var(--soft); font-size: .8rem; margin-top: 2.5rem;
  padding-top: .6rem; }
@page { margin: 15mm; }
@media print {
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, caption { break-after: avoid; }
  tr, figure, .tile, .note, dl { break-inside: avoid; }
  .pair { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding-right: .55rem; }
}
"""


class Html(str):
    """Markup that is safe to put into a document."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """One section of a document.

    Parameters
    ----------
    title, blocks
        What it says.
    missing
        What has to be in it and is not: the document is incomplete with any of these.
    unknown
        What could not be assessed, and why; it is listed again at the document's end.
    """

    title: str
    blocks: Sequence[Html]
    missing: Sequence[str] = field(default_factory=tuple)
    unknown: Sequence[str] = field(default_factory=tuple)

    @property
    def anchor(self) -> str:
        """Where a link leads to."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def text(value: object) -> Html:
    """Return any value as text, escaped; what is markup already stays."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def paragraph(words: str) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{text(words)}</p>")


def heading(words: str) -> Html:
    """Return a heading within a section."""
    return Html(f"<h3>{text(words)}</h3>")


def listed(items: Sequence[str]) -> Html:
    """Return a list; nothing of no items."""
    return Html(f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>" if items else "")


def note(words: str, kind: str = "") -> Html:
    """Return words that stand out; the kind is a status, or nothing."""
    return Html(f'<p class="note {text(kind)}">{text(words)}</p>')


def chip(status: str) -> Html:
    """Return a status, told by word and colour."""
    return Html(f'<span class="chip {text(status)}">{text(status.replace("_", " "))}</span>')


def facts(rows: Mapping[str, object]) -> Html:
    """Return names with their values; those without a value are left out."""
    known = {name: value for name, value in rows.items() if value not in (None, "")}
    return Html(f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in known.items())}</dl>")


def tiles(rows: Mapping[str, tuple[str, str]]) -> Html:
    """Return the figures that are read first: name to (figure, what to know of it)."""
    drawn = [
        f'<div class="tile"><span>{text(name)}</span><b>{text(figure)}</b><span>{text(remark)}</span></div>'
        for name, (figure, remark) in rows.items()
    ]
    return Html(f'<div class="tiles">{"".join(drawn)}</div>')


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], caption: str = "") -> Html:
    """Return rows as a table.

    Parameters
    ----------
    columns
        Key in the rows to the column's heading.
    rows
        Values: numbers are set to the right, `Html` is taken as it is, None is a dash; everything else is escaped.
    """
    if not rows:
        return Html("")
    numeric = {
        key
        for key in columns
        if all(_is_number(row.get(key)) for row in rows) and any(row.get(key) not in _NOTHING for row in rows)
    }
    kinds = {key: ' class="n"' if key in numeric else "" for key in columns}
    head = "".join(f"<th{kinds[key]}>{text(name)}</th>" for key, name in columns.items())
    body = "".join(
        f"<tr>{''.join(f'<td{kinds[key]}>{_cell(row.get(key))}</td>' for key in columns)}</tr>" for row in rows
    )
    above = f"<caption>{text(caption)}</caption>" if caption else ""
    return Html(f'<div class="scroll"><table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def figure(picture: bytes, words: str, caption: str = "") -> Html:
    """Return a PNG with words for those who do not see it."""
    data = base64.b64encode(picture).decode()
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img src="data:image/png;base64,{data}" alt="{text(words)}">{below}</figure>')


def pair(*blocks: Html) -> Html:
    """Return blocks side by side where there is room."""
    return Html(f'<div class="pair">{"".join(f"<div>{block}</div>" for block in blocks if block)}</div>')


def page(title: str, lines: Sequence[str], opening: Sequence[Html], sections: Sequence[Section], closing: str) -> bytes:
    """Return the whole document; it loads nothing and runs nothing.

    Parameters
    ----------
    title, lines
        The heading and what stands below it.
    opening
        What comes before the contents.
    closing
        The last line.
    """
    contents = "".join(
        f'<a href="#{each.anchor}">{number}. {text(each.title)}</a>' for number, each in enumerate(sections, 1)
    )
    drawn = "".join(
        f'<section id="{each.anchor}"><h2>{number}. {text(each.title)}</h2>{"".join(each.blocks)}{_missing(each)}'
        "</section>"
        for number, each in enumerate(sections, 1)
    )
    below = "".join(f"<p>{text(line)}</p>" for line in lines)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{text(title)}</h1>{below}</header><main>{''.join(opening)}<nav>{contents}</nav>{drawn}</main>"
        f"<footer>{text(closing)}</footer></body></html>\n"
    ).encode()


def _missing(section: Section) -> str:
    return "".join(note(f"Missing: {each}", "failed") for each in section.missing)


def _is_number(value: object) -> bool:
    """Whether a value is set to the right: a number, also one that is written out, or nothing."""
    if isinstance(value, str) and value not in _NOTHING:
        return bool(_NUMBER.fullmatch(value))
    return value in _NOTHING or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> Html:
    if value in _NOTHING:
        return Html(DASH)
    if isinstance(value, float):
        return text(f"{value:.4g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return text(f"{value:,}")
    return text(value)
