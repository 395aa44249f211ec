"""The tables of a journal's file, and where they disagree with the entries.

What belongs here: what lies in the file, and whether that is all there and fits together. What does not: transactions
and connections (`_journal_store.py`), and whether an entry is what it was (`_journal_chain.py`).
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

APPLICATION_ID = 0x6D6C6A31  # "mlj1" in the file's header: this is a journal, in this layout
# 8 KiB hold five decisions without waste; larger pages would make single appends write more than they say.
PAGE_BYTES = 8_192

TABLES = {
    "entries": """create table entries (
    number integer primary key, kind text not null, key text, subject text, at text not null,
    behind_us integer not null, terms text not null, body text not null,
    previous_sha256 blob not null, sha256 blob not null) strict""",
    "entry_key": "create unique index entry_key on entries(kind, key) where key is not null",
    "entry_subject": "create index entry_subject on entries(subject) where subject is not null",
    "entry_kind": "create index entry_kind on entries(kind)",
    "terms": """create table terms (
    id integer primary key, name text not null, value text not null, unique (name, value)) strict""",
    "entry_index": """create table entry_index (
    term integer not null, number integer not null, primary key (term, number)) strict, without rowid""",
    "last_entry": """create table last_entry (
    one integer primary key check (one = 1), number integer not null, sha256 blob not null) strict""",
}
# The chain is the proof; the guards keep an honest hand from slipping.
GUARDS = {
    f"no_{action}_of_{table}": (
        f"create trigger no_{action}_of_{table} before {action} on {table} "
        "begin select raise(abort, 'a journal is append-only'); end"
    )
    for table, actions in {
        "entries": ("update", "delete"), "terms": ("update", "delete"),
        "entry_index": ("update", "delete"), "last_entry": ("delete",),
    }.items()
    for action in actions
}  # fmt: skip


def make_empty(path: Path) -> None:
    """Make the file of a journal without entries."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"pragma page_size = {PAGE_BYTES}")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = off")  # whoever puts the file in its place flushes it
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        for sql in (*TABLES.values(), *GUARDS.values()):
            connection.execute(sql)
        connection.execute("insert into last_entry values (1, 0, ?)", [bytes(32)])
    finally:
        connection.close()


def schema_problems(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield which tables, indexes and guards are not what a journal has."""
    wanted = {**TABLES, **GUARDS}
    found = {row[0]: row[1:] for row in connection.execute("select name, type, sql from sqlite_master")}
    for name, sql in wanted.items():
        if name not in found:
            yield f"{name} was removed from the file"
        elif sql.lower() != str(found[name][1]).lower():
            yield f"{name} in the file is not what a journal has under that name"
    for name, (kind, _) in found.items():
        if kind == "trigger" and name not in wanted:  # tables of other tools do no harm
            yield f"the file has a trigger {name}, which may change what is written"


def index_problems(connection: sqlite3.Connection, postings: int) -> Iterator[tuple[int | None, str]]:
    """Yield where the index disagrees with the entries, of which the chain has vouched."""
    terms = "json_each(case when json_valid(e.terms) then e.terms else '[]' end) t"
    lost = f"""select e.number, t.value, (select name || ' ' || value from terms where id = t.value)
        from entries e, {terms}
        left join entry_index i on i.term = t.value and i.number = e.number where i.number is null"""
    missing = 0
    for number, term, value in connection.execute(lost):
        missing += 1
        yield number, f"cannot be found by its index value {value or f'number {term}'} any more"
    if connection.execute("select count(*) from entry_index").fetchone()[0] + missing != postings:
        added = f"""select i.number, (select name || ' ' || value from terms where id = i.term), i.term
            from entry_index i where not exists
            (select 1 from entries e, {terms} where e.number = i.number and t.value = i.term)"""
        for number, value, term in connection.execute(added):
            yield number, f"is listed under the index value {value or f'number {term}'}, which it does not have"
    unused = """select name || ' ' || value from terms
        where not exists (select 1 from entry_index where term = terms.id)"""
    for (value,) in connection.execute(unused):
        yield None, f"the index value {value} belongs to no entry"
