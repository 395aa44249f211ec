"""A journal holds what was appended, in one chain, whoever appends and whatever dies; and tells who has been at it."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.foundation import journal as journal_module
from mlops_assets.foundation.errors import UserError
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.journal import GENESIS, Draft, Entry, Head, Journal, Problem
from mlops_assets.foundation.resources import Journals

NOON = datetime(2026, 6, 30, 12, tzinfo=UTC)
RED = {"colour": "red", "size": "s"}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "some" / "log.db") as opened:
        yield opened


def tampered(path: Path, *statements: str) -> None:
    """Do to the file what its guards forbid, as somebody would who has it in his hands."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma synchronous = off")
        guards = connection.execute("select name, sql from sqlite_master where type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"drop trigger {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in guards:
            with suppress(sqlite3.OperationalError):  # its table may be gone
                connection.execute(sql)
        connection.commit()


def told(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


# --- appending and looking up


def test_an_entry_reads_back_as_it_was_appended(journal: Journal) -> None:
    before = datetime.now(UTC)
    entry = journal.append("note", {"b": 1, "a": [None, "ä"]}, key="k1", subject="s1", index=RED)
    assert (entry.number, entry.kind, entry.key, entry.subject, entry.index) == (1, "note", "k1", "s1", RED)
    assert (entry.text, entry.body) == ('{"a":[null,"ä"],"b":1}', {"b": 1, "a": [None, "ä"]})
    assert entry.previous_sha256 == GENESIS
    assert before - timedelta(microseconds=1) <= entry.at <= datetime.now(UTC)
    assert (entry.fresh, entry.intact, entry.behind_us) == (True, True, 0)
    assert journal.get("note", "k1") == entry
    assert journal.head() == entry.head == Head(1, entry.sha256)


def test_every_entry_follows_the_one_before_it(journal: Journal) -> None:
    journal.append("a", 1)
    journal.append_many(Draft("b", n) for n in range(3))
    journal.append("c", 2)
    entries = list(journal.read())
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5]
    assert all(after.previous_sha256 == before.sha256 for before, after in pairwise(entries))
    assert all(after.at >= before.at for before, after in pairwise(entries))
    assert journal.verify() == []


texts = st.text(st.characters(codec="utf-8"), max_size=8)
names = st.dictionaries(texts, texts, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(Draft, texts.filter(bool), json_values, st.none() | texts, st.none() | texts, names),
        min_size=1,
        max_size=4,
    )
)
def test_the_hash_is_that_of_the_canonical_json_of_all_other_fields(drafts: list[Draft]) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "j.db") as journal:
        journal.append_many(drafts)
        entries = list(journal.read())
        for entry in entries:
            assert hashlib.sha256(canonical_json(entry.document())).hexdigest() == entry.sha256
            assert entry.intact
        first = {(draft.kind, draft.key): draft for draft in reversed(drafts)}
        wanted = [d for d in drafts if d.key is None or first[d.kind, d.key] is d]
        assert [(e.kind, e.body, e.key, e.subject, e.index) for e in entries] == [
            (d.kind, json.loads(canonical_json(d.body)), d.key, d.subject, d.index) for d in wanted
        ]
        assert journal.verify([journal.head()]) == []


def test_a_known_key_appends_nothing_and_gives_the_first_entry(journal: Journal) -> None:
    first = journal.append("note", "first", key="k")
    again = journal.append("note", "other", key="k", subject="s")
    assert again == first
    assert (first.fresh, again.fresh) == (True, False)
    assert journal.append("memo", "of another kind", key="k").number == 2
    assert journal.append("note", "without a key").number == 3
    assert journal.append("note", "without a key").number == 4


def test_many_are_appended_once_however_often_they_come(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BLOCK_ROWS", 4)
    drafts = [Draft("n", n, key=str(n % 7)) for n in range(20)]
    result = journal.append_many(drafts)
    assert (result.appended, result.existing, result.head) == (7, 13, journal.head())
    assert [entry.body for entry in journal.read()] == list(range(7))
    assert journal.append_many(drafts)[:2] == (0, 20)
    assert journal.append_many([]) == (0, 0, result.head)
    assert journal.known("n", ["3", "7", "3"]) == {"3"}
    assert journal.known("n", map(str, range(2_000))) == set("0123456")
    assert journal.verify() == []


def test_transactions_are_bounded_by_rows_and_by_bytes(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def drafts(count: int) -> Iterator[Draft]:
        for _ in range(count):
            seen.append(journal.head().number)
            yield Draft("n", "x" * 10)

    seen: list[int] = []
    monkeypatch.setattr(journal_module, "BLOCK_ROWS", 3)
    journal.append_many(drafts(7))
    assert seen == [0, 0, 0, 3, 3, 3, 6]
    monkeypatch.setattr(journal_module, "BLOCK_BYTES", 24)  # two bodies of twelve bytes
    seen.clear()
    journal.append_many(drafts(4))
    assert seen == [7, 7, 9, 9]


def test_what_was_appended_before_a_source_failed_is_kept_and_completed_by_the_next_call(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BLOCK_ROWS", 10)
    drafts = [Draft("n", n, key=str(n)) for n in range(25)]

    def failing() -> Iterator[Draft]:
        yield from drafts[:15]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        journal.append_many(failing())
    assert journal.head().number == 10
    assert journal.append_many(drafts)[:2] == (15, 10)
    assert [entry.body for entry in journal.read()] == list(range(25))


@pytest.mark.parametrize(
    ("body", "key", "index"),
    [
        (float("nan"), None, {}),
        ({"a": float("inf")}, None, {}),
        ({1, 2}, None, {}),
        (datetime.now(UTC), None, {}),
        ("half a pair \ud800", None, {}),
        ("fine", "\udfff", {}),
        ("fine", None, {"name": "\ud800"}),
        ("fine", None, {"name": 3}),
    ],
    ids=["nan", "inside", "set", "time", "surrogate", "surrogate key", "surrogate index", "index of a number"],
)
def test_what_has_no_place_in_a_journal_is_named_and_leaves_nothing(
    journal: Journal, body: Any, key: str | None, index: Any
) -> None:
    with pytest.raises(UserError, match=r"log\.db: .* cannot be recorded: .* Remedy: record plain numbers") as caught:
        journal.append("note", body, key=key, index=index)
    assert str(journal.path) in str(caught.value)
    with pytest.raises(UserError):
        journal.append_many([Draft("note", 1), Draft("note", body, key, None, index)])
    assert journal.head().number == 0
    assert journal.append("note", "good", index={"name": "x"}).number == 1
    assert journal.verify() == []


def test_a_body_nested_beyond_all_reason_is_refused(journal: Journal) -> None:
    body: list[Any] = []
    for _ in range(100_000):
        body = [body]
    with pytest.raises(UserError, match="cannot be recorded"):
        journal.append("note", body)


def test_an_entry_without_a_kind_is_a_mistake_of_the_caller(journal: Journal) -> None:
    with pytest.raises(ValueError, match="needs a kind"):
        journal.append("", 1)


# --- time


def test_time_does_not_fall_when_the_clock_goes_back_and_the_entry_says_by_how_much(tmp_path: Path) -> None:
    times = [NOON, NOON - timedelta(hours=1), NOON - timedelta(seconds=1), NOON + timedelta(seconds=1)]
    journal = Journal(tmp_path / "j.db", clock=iter(times).__next__)
    entries = [journal.append("tick", n) for n in range(4)]
    assert [entry.at for entry in entries] == [NOON, NOON, NOON, times[3]]
    assert [entry.behind_us for entry in entries] == [0, 3_600_000_000, 1_000_000, 0]
    assert journal.verify() == []
    assert list(journal.read()) == entries


def test_times_are_kept_in_utc_whatever_the_clock_counts_in(tmp_path: Path) -> None:
    from zoneinfo import ZoneInfo

    journal = Journal(tmp_path / "j.db", clock=lambda: NOON.astimezone(ZoneInfo("Asia/Tokyo")))
    assert journal.append("tick", 1).document()["at"] == "2026-06-30T12:00:00.000000+00:00"


def test_a_span_has_its_beginning_and_not_its_end(tmp_path: Path) -> None:
    minutes = [0, 1, 1, 1, 2, 5]
    times = iter([NOON + timedelta(minutes=m) for m in minutes])
    journal = Journal(tmp_path / "j.db", clock=times.__next__)
    for minute in minutes:
        journal.append("tick", minute)

    def bodies(since: float | None, until: float | None) -> list[int]:
        ends = [None if m is None else NOON + timedelta(minutes=m) for m in (since, until)]
        return [entry.body for entry in journal.read(since=ends[0], until=ends[1])]

    assert bodies(1, 2) == [1, 1, 1]
    assert bodies(1, 2.01) == [1, 1, 1, 2]
    assert bodies(None, 1) == [0]
    assert bodies(3, None) == [5]
    assert bodies(6, None) == bodies(None, 0) == bodies(2, 1) == []
    with pytest.raises(ValueError, match="has no time zone"):
        journal.read(since=NOON.replace(tzinfo=None))


# --- reading

pairs = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xyz"), max_size=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Journal, list[Draft]]]:
    """A journal of all combinations of few values, in no order, and what was appended to it."""
    indexes: list[dict[str, str]] = [{}, {"a": "x"}, {"b": "x"}, {"a": "y", "b": "x"}, {"a": "x", "b": "y"}]
    drafts = [
        Draft(kind, [kind, subject], None, subject, index)
        for kind in "kl" for subject in (None, "s", "t") for index in indexes
    ]  # fmt: skip
    drafts = [drafts[n * 7 % len(drafts)] for n in range(len(drafts))]
    with Journal(tmp_path_factory.mktemp("mixed") / "j.db") as journal:
        journal.append_many(drafts)
        yield journal, drafts


@settings(max_examples=300, deadline=None)
@given(
    st.none() | st.sampled_from("klm"),
    st.none() | st.sampled_from("stu"),
    pairs,
    st.integers(0, 31),
    st.none() | st.integers(0, 9),
    st.booleans(),
    st.integers(1, 4),
)
def test_reading_gives_what_a_look_at_every_entry_would(
    mixed: tuple[Journal, list[Draft]],
    kind: str | None,
    subject: str | None,
    index: dict[str, str],
    after: int,
    limit: int | None,
    ascending: bool,
    page: int,
) -> None:
    journal, drafts = mixed
    wanted = [
        number
        for number, draft in enumerate(drafts, start=1)
        if kind in (None, draft.kind) and subject in (None, draft.subject) and index.items() <= draft.index.items()
    ]
    last = journal.last(kind, subject=subject, index=index)
    assert (last.number if last else None) == (wanted[-1] if wanted else None)
    wanted = [number for number in wanted if number > after]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "_PAGE_ROWS", page)
        found = journal.read(kind, subject=subject, index=index, after_number=after, limit=limit, ascending=ascending)
        assert [e.number for e in found] == (wanted if ascending else wanted[::-1])[:limit]


def test_a_stream_ends_with_what_was_there_when_it_was_asked_for(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_PAGE_ROWS", 2)
    journal.append_many(Draft("n", n) for n in range(5))
    seen = []
    for entry in journal.read("n"):
        seen.append(entry.body)
        journal.append("n", -1)
    assert seen == list(range(5))


@pytest.mark.parametrize(
    ("asked", "led_by"),
    [
        ({"kind": "k"}, "entry_kind"),
        ({"kind": "k", "subject": "s"}, "entry_subject"),
        ({"subject": "s", "index": {"a": "x"}}, "entry_subject"),
        ({"kind": "k", "index": {"a": "x", "b": "y"}}, "i0 using primary key"),
    ],
    ids=str,
)
def test_a_look_up_reads_no_more_of_a_large_journal_than_it_has_to(
    journal: Journal, asked: dict[str, Any], led_by: str
) -> None:
    from mlops_assets.foundation._journal_store import Query, _selection

    journal.append("k", 1, subject="s", index={"a": "x", "b": "y"})
    query = Query(asked.get("kind"), asked.get("subject"), tuple(asked.get("index", {}).items()))
    sql, parameters = _selection(query, [1] * len(query.terms), after=0, until=1, ascending=False)
    with closing(sqlite3.connect(journal.path)) as connection:
        plan = [row[3].lower() for row in connection.execute(f"explain query plan {sql}", parameters)]
    assert led_by in plan[0]
    assert not [step for step in plan if step.startswith("scan") or "temp b-tree" in step]


# --- opening


def test_a_reader_reads_and_never_writes(journal: Journal) -> None:
    journal.append("note", 1)
    with Journal(journal.path, read_only=True) as reader:
        assert [entry.body for entry in reader.read()] == [1]
        journal.append("note", 2)
        assert [entry.body for entry in reader.read()] == [1, 2]
        assert reader.verify([journal.head()]) == []
        with pytest.raises(UserError, match="opened for reading"):
            reader.append("note", 3)


def test_a_reader_makes_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"j\.db: there is no journal\. Remedy: run the step that writes it"):
        Journal(tmp_path / "none" / "j.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_names_with_signs_of_an_address_are_names_of_files(tmp_path: Path) -> None:
    path = tmp_path / "50% of ?mode=memory#x" / "a&b.db"
    with Journal(path) as journal:
        journal.append("note", 1)
    assert path.is_file()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a&b.db"]


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table entries (number integer)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"no database" * 1_000), "damaged, or no journal"),
        (lambda path: path.write_bytes(b""), "not a journal of this version"),
        (_foreign, "not a journal of this version"),
        (lambda path: path.mkdir(), "this is no file"),
    ],
    ids=["text", "empty", "another database", "folder"],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_no_journal_is_named_at_once_and_left_as_it_is(
    tmp_path: Path, make: Any, words: str, read_only: bool
) -> None:
    path = tmp_path / "j.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=words) as caught:
        Journal(path, read_only=read_only)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/j\.db"):
        Journal(tmp_path / "file" / "j.db")


def test_a_truncated_file_is_told_when_it_is_read_and_when_it_is_verified(journal: Journal) -> None:
    journal.append_many(Draft("n", "x" * 500) for _ in range(300))
    journal.close()
    with journal.path.open("r+b") as handle:
        handle.truncate(journal.path.stat().st_size // 2)
    for use in (journal.read, journal.verify, journal.head, lambda: journal.append("n", 1)):
        with pytest.raises(
            UserError, match=r"log\.db: the file is damaged, or no journal.*restore the file from a back"
        ):
            use()


def test_a_hole_in_the_file_is_told_with_what_can_still_be_read(journal: Journal) -> None:
    journal.append_many(Draft("n", "x" * 500, key=str(n)) for n in range(300))
    journal.close()
    with journal.path.open("r+b") as handle:
        handle.seek(journal.path.stat().st_size // 2)
        handle.write(bytes(40_000))
    assert "the file is damaged" in told(journal.verify())
    with pytest.raises(UserError, match=r"log\.db: the file is damaged"):
        list(journal.read())


def test_a_journal_lets_go_of_its_file_when_nobody_holds_it_any_more(tmp_path: Path) -> None:
    """Python 3.13 warns of connections that nobody closed, and warnings are errors here."""
    Journal(tmp_path / "j.db").append("note", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["j.db"]


def run(program: str, *arguments: object, **how: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", f"from mlops_assets.foundation.journal import *\n{program}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **how)


_AS_NOBODY = """
import os, sys
from mlops_assets.foundation.errors import UserError
path, read_only = sys.argv[1], sys.argv[2] == "read"
os.setuid(65534)
try:
    journal = Journal(path, read_only=read_only)
    print([entry.body for entry in journal.read()], journal.verify(), flush=True)
    print(sys.stdin.readline().strip() or "alone", flush=True)
    if not read_only: journal.append("note", 2)
    print([entry.body for entry in journal.read()])
except UserError as error:
    print(error)
"""


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that everybody may read, and only its owner may write to."""
    if os.name != "posix" or os.getuid() != 0:
        pytest.skip("only root can take another user's place")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def nobody(path: Path, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", f"from mlops_assets.foundation.journal import *\n{_AS_NOBODY}", str(path), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_who_may_not_write_reads_and_verifies_what_others_append(closed_folder: Path) -> None:
    path = closed_folder / "j.db"
    with Journal(path) as journal:
        journal.append("note", 1)
    with nobody(path, "read") as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "[1] []\n"
        journal.append("note", 2)  # and keeps it open: the entry is not in the file itself yet
        reader.stdin.write("go on\n")
        reader.stdin.flush()
        assert reader.stdout.read().splitlines() == ["go on", "[1, 2]"]
    journal.close()
    with nobody(path, "read") as reader:
        assert reader.communicate("\n")[0].splitlines()[0] == "[1, 2] []"


def test_who_may_not_write_is_not_shown_less_than_was_appended(closed_folder: Path, tmp_path: Path) -> None:
    """What a writer who died has left beside the file cannot be read without writing; without it, entries lack."""
    with Journal(tmp_path / "j.db") as journal:
        journal.append("note", 1)
        for name in ("j.db", "j.db-wal"):
            shutil.copy(tmp_path / name, closed_folder / name)
    with nobody(closed_folder / "j.db", "read") as reader:
        told = reader.communicate("\n")[0]
    assert "cannot open the journal" in told
    assert "read a copy of all files whose names begin with its name" in told


def test_who_may_not_write_gets_to_know_it(closed_folder: Path) -> None:
    with Journal(closed_folder / "j.db") as journal:
        journal.append("note", 1)
    with nobody(closed_folder / "j.db", "write") as writer:
        told = writer.communicate("\n")[0]
    assert "cannot open the journal" in told
    assert "Remedy: make the file and its folder readable and writable" in told
    with Journal(closed_folder / "j.db", read_only=True) as reader:
        assert reader.head().number == 1


# --- others at the same time


@pytest.mark.parametrize("wait", [0.2])
def test_a_writer_that_does_not_end_is_named(journal: Journal, wait: float) -> None:
    with closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with (
            Journal(journal.path, wait_seconds=wait) as waiting,
            pytest.raises(UserError, match=r"another process has been writing for more than 0\.2 s.*Remedy: wait"),
        ):
            waiting.append("note", 1)
        assert list(journal.read()) == []  # readers do not wait
        other.execute("rollback")
    assert journal.append("note", 1).number == 1


_APPENDING = """
import sys, threading
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
journal = Journal(path)
def work(thread):
    for n in range(count):
        journal.append("own", [name, thread, n], index={"by": name})
        journal.append("shared", [name, thread, n], key=str(n))
        journal.append_many(Draft("many", n, key=f"{n}-{m}") for m in range(3))
threads = [threading.Thread(target=work, args=[thread]) for thread in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_processes_and_threads_write_one_chain(tmp_path: Path) -> None:
    path, count, writers = tmp_path / "new" / "j.db", 15, ("a", "b", "c")
    with ThreadPoolExecutor(len(writers)) as pool:  # nobody made the file before: they also race for that
        done = list(pool.map(lambda name: run(_APPENDING, path, name, count), writers))
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * len(writers)
    with Journal(path, read_only=True) as journal:
        assert journal.verify() == []
        own = [tuple(entry.body) for entry in journal.read("own")]
        assert sorted(own) == sorted((name, t, n) for name in writers for t in range(2) for n in range(count))
        for name in writers:  # nobody's entries overtake each other
            for thread in range(2):
                assert [n for who, t, n in own if (who, t) == (name, thread)] == list(range(count))
        assert sorted(int(entry.key or "") for entry in journal.read("shared")) == list(range(count))
        assert journal.head().number == len(own) + count + 3 * count


def test_a_journal_is_verified_while_others_append(journal: Journal) -> None:
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            journal.append("note", 1, index=RED)

    thread = threading.Thread(target=append)
    thread.start()
    try:
        found = [journal.verify([journal.head()]) for _ in range(15)]
    finally:
        stop.set()
        thread.join()
    assert found == [[]] * 15


def test_a_forked_process_appends_with_its_own_connection(tmp_path: Path) -> None:
    program = """
import os, sys
journal = Journal(sys.argv[1])
journal.append("parent", 1)
child = os.fork()
if child == 0:
    journal.append("child", 2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
journal.append("parent", 3)
print([entry.body for entry in journal.read()], journal.verify())
"""
    done = run(program, tmp_path / "j.db")
    assert done.stdout == "[1, 2, 3] []\n", done.stderr


# --- ends that nobody asked for

_KILLED = """
import os, signal, sys
from itertools import count
from pathlib import Path
from mlops_assets.foundation import _journal_file

def dies_at(path, at):
    left = [at]
    def note(sql):
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
    plain = _journal_file.JournalFile._opened
    def opened(self, mode):
        connection = plain(self, mode)
        connection.set_trace_callback(note)
        return connection
    _journal_file.JournalFile._opened = opened
    Journal(path).append_many(Draft("during", n, key=str(n), index={"a": "x", "n": str(n)}) for n in range(3))

for at in count(1):
    path = Path(sys.argv[1]) / f"{at}.db"
    Journal(path).append("before", 0, key="0", index={"a": "x"})
    pid = os.fork()
    if pid == 0:
        dies_at(path, at)
        os._exit(0)
    if os.waitpid(pid, 0)[1] != signal.SIGKILL: break
print(at)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process with a POSIX signal")
def test_a_process_killed_before_any_of_its_statements_leaves_a_whole_chain(tmp_path: Path) -> None:
    done = run(_KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    survived = int(done.stdout)
    assert survived > 15
    numbers = []
    for at in range(1, survived + 1):
        with Journal(tmp_path / f"{at}.db") as journal:
            assert journal.verify() == [], at
            numbers.append(journal.head().number)
            journal.append_many(Draft("during", n, key=str(n)) for n in range(3))
            assert journal.known("during", "012") == set("012")
            assert journal.verify() == [], at
    assert set(numbers) == {1, 4}  # all of the transaction, or nothing
    assert numbers == sorted(numbers)


_ACKNOWLEDGING = """
import sys
journal = Journal(sys.argv[1])
start, number = journal.head().number, 0
while True:
    number += 1
    if number % 3:
        journal.append("one", number, index={"n": str(number % 5)})
    else:
        journal.append_many(Draft("many", "x" * 3_000, index={"n": str(n % 5)}) for n in range(400))
    print(journal.head().number, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    command = [sys.executable, "-c", f"from mlops_assets.foundation.journal import *\n{_ACKNOWLEDGING}", str(path)]
    for lines, pause in [(1, 0.0), (2, 0.004), (6, 0.011), (9, 0.0)]:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            time.sleep(pause)
            process.kill()
            rest = [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
            acknowledged = max([acknowledged, *rest])
        with Journal(path, read_only=True) as journal:
            assert journal.head().number >= acknowledged
            assert journal.verify() == []


_FULL = """
import resource, sys
from mlops_assets.foundation.errors import UserError
journal = Journal(sys.argv[1])
journal.append("before", 0, index={"a": "x"})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
try:
    journal.append_many(Draft("many", "x" * 3_000, key=str(n), index={"a": "y", "n": str(n % 5)}) for n in range(2_000))
except UserError as error:
    print(error)
print(journal.head().number, journal.verify())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(journal.append_many(Draft("many", 1, key=str(n), index={"a": "y", "n": str(n % 5)}) for n in range(20))[:2])
print(journal.head().number, journal.verify(), len(list(journal.read(index={"a": "y", "n": "3"}))))
"""


@pytest.mark.skipif(os.name != "posix", reason="the limit that stands for a full disk is POSIX's")
def test_a_full_disk_is_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    done = run(_FULL, tmp_path / "j.db")
    assert done.returncode == 0, done.stderr
    error, after, appended, last = done.stdout.splitlines()
    assert "j.db: the disk refuses: " in error
    assert "free space on the disk, then run again" in error
    assert after == "1 []"
    assert appended == "(20, 0)"
    assert last == "21 [] 4"


# --- hands in the file


def test_the_file_guards_itself_against_an_honest_hand(journal: Journal) -> None:
    journal.append("note", 1, index=RED)
    with closing(sqlite3.connect(journal.path)) as connection:
        for statement in (
            "update entries set body = '2'",
            "delete from entries",
            "update terms set value = 'blue'",
            "delete from terms",
            "update entry_index set number = 2",
            "delete from entry_index",
            "delete from last_entry",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="a journal is append-only"):
                connection.execute(statement)
    assert journal.verify() == []


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of twelve entries, for others to damage copies of."""
    path = tmp_path_factory.mktemp("sample") / "j.db"
    with Journal(path) as journal:
        for n in range(12):
            key, subject = (f"{n:02d}{'abcdefghijkl'[n]}", f"s{n % 3}") if n % 4 else (None, None)
            index = {"n": str(n % 5), "all": "x"} if n % 3 else {}
            journal.append("one" if n % 2 else "two", {"n": n, "text": f"entry {n}"}, key, subject, index)
    return path


def damaged(sample: Path, folder: str, *statements: str) -> Journal:
    path = Path(folder) / "j.db"
    shutil.copy(sample, path)
    tampered(path, *statements)
    return Journal(path)


def head_of(sample: Path) -> Head:
    with Journal(sample, read_only=True) as journal:
        return journal.head()


def entries_of(sample: Path) -> list[Entry]:
    with Journal(sample, read_only=True) as journal:
        return list(journal.read())


TEXT_FIELDS = ("kind", "key", "subject", "at", "terms", "body")


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_change_of_any_byte_of_any_field_is_found_and_named(sample: Path, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 12), label="entry")
    field = data.draw(st.sampled_from([*TEXT_FIELDS, "previous_sha256", "sha256", "behind_us"]), label="field")
    with closing(sqlite3.connect(sample)) as connection:
        value = connection.execute(f"select {field} from entries where number = {number}").fetchone()[0]
    if isinstance(value, int):
        changed = str(value + data.draw(st.integers(1, 9)))
    else:
        raw = bytearray(value if isinstance(value, bytes) else (value or "").encode())
        place = data.draw(st.integers(0, max(len(raw) - 1, 0)), label="place")
        if raw:
            raw[place] ^= data.draw(st.integers(1, 255), label="bits")
        else:
            raw += b"x"
        changed = f"x'{raw.hex()}'" if isinstance(value, bytes) else f"cast(x'{raw.hex()}' as text)"
    statement = f"update entries set {field} = {changed} where number = {number}"
    with tempfile.TemporaryDirectory() as folder, damaged(sample, folder, statement) as journal:
        problems = journal.verify()
    assert number in {problem.number for problem in problems}, told(problems)


@pytest.mark.parametrize("field", ["key", "subject"])
@pytest.mark.parametrize("number", [2, 3, 12])
def test_a_field_set_to_nothing_is_found_and_named(sample: Path, tmp_path: Path, number: int, field: str) -> None:
    problems = damaged(sample, str(tmp_path), f"update entries set {field} = null where number = {number}").verify()
    assert {problem.number for problem in problems} == {number}


@pytest.mark.parametrize("renumbered", [False, True])
@pytest.mark.parametrize("number", range(1, 13))
def test_any_removal_is_found_and_named(sample: Path, tmp_path: Path, number: int, renumbered: bool) -> None:
    statements = [f"delete from entries where number = {number}", f"delete from entry_index where number = {number}"]
    if renumbered:
        statements += [
            f"update {table} set number = -number where number > {number}" for table in ("entries", "entry_index")
        ]
        statements += [
            f"update {table} set number = -number - 1 where number < 0" for table in ("entries", "entry_index")
        ]
    problems = damaged(sample, str(tmp_path), *statements).verify()
    text = told(problems)
    if not renumbered or number == 12:
        assert f"entry {number} is missing" in text
        assert {problem.number for problem in problems} <= {number, None}  # its index values may belong to no other
    else:
        assert f"entry {number} was moved: it was written as entry {number + 1}" in text
        assert "entry 12 is missing: the journal recorded entry 12 as its last" in text


def test_a_removed_stretch_is_named_as_one(sample: Path, tmp_path: Path) -> None:
    journal = damaged(
        sample, str(tmp_path), *[f"delete from {t} where number in (4, 5, 6)" for t in ("entries", "entry_index")]
    )
    (problem,) = [problem for problem in journal.verify() if problem.number]
    assert str(problem) == "entry 4 is missing: it was removed, and so are those up to 6"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=2, unique=True))
def test_any_two_entries_that_changed_places_are_found_and_named(sample: Path, two: list[int]) -> None:
    first, second = two
    moves = [
        f"update {table} set number = {new} where number = {old}"
        for table in ("entries", "entry_index")
        for old, new in [(first, 99), (second, first), (99, second)]
    ]
    with tempfile.TemporaryDirectory() as folder, damaged(sample, folder, *moves) as journal:
        problems = told(journal.verify())
    assert f"entry {first} was moved: it was written as entry {second}" in problems
    assert f"entry {second} was moved: it was written as entry {first}" in problems


def forged(sample: Path, number: int, body: str = '"forged"') -> str:
    """Return the statement that puts an entry in a place, with right hashes for that place."""
    previous = GENESIS if number == 1 else entries_of(sample)[number - 2].sha256
    at = "2026-06-30T12:00:00.000000+00:00"
    document = {
        "number": number, "kind": "one", "key": None, "subject": None, "at": at, "behind_us": 0, "index": {},
        "body": json.loads(body), "previous_sha256": previous,
    }  # fmt: skip
    own = hashlib.sha256(canonical_json(document)).hexdigest()
    return (
        f"insert into entries values ({number}, 'one', null, null, '{at}', 0, '[]', '{body}', x'{previous}', x'{own}')"
    )


@pytest.mark.parametrize("number", [-3, 0, *range(1, 14)])
def test_any_insertion_is_found_and_named(sample: Path, tmp_path: Path, number: int) -> None:
    shift = [f"update {t} set number = -number where number >= {number}" for t in ("entries", "entry_index")]
    shift += [f"update {t} set number = -number + 1 where number < 0" for t in ("entries", "entry_index")]
    statement = forged(sample, max(number, 1)).replace(f"({max(number, 1)},", f"({number},")
    problems = damaged(sample, str(tmp_path), *(shift if number > 0 else []), statement).verify()
    assert f"entry {number} was inserted" in told(problems)


@pytest.mark.parametrize("number", range(1, 13))
def test_an_entry_that_was_replaced_and_hashed_again_is_found_and_named(
    sample: Path, tmp_path: Path, number: int
) -> None:
    statements = [f"delete from {t} where number = {number}" for t in ("entries", "entry_index")]
    problems = damaged(sample, str(tmp_path), *statements, forged(sample, number)).verify()
    assert {problem.number for problem in problems} <= {number, None}
    assert f"entry {number} is not the one that" in told(problems)


def rewritten(sample: Path, start: int, count: int = 12) -> list[str]:
    """Return the statements that change an entry and hash it and all later ones again, as a patient hand would."""
    statements, previous = [], GENESIS
    for entry in entries_of(sample)[:count]:
        if entry.number >= start:
            document = {**entry.document(), "previous_sha256": previous}
            if entry.number == start:
                document["body"] = "forged"
            own = hashlib.sha256(canonical_json(document)).hexdigest()
            body = canonical_json(document["body"]).decode()
            statements.append(
                f"update entries set body = '{body}', previous_sha256 = x'{previous}', sha256 = x'{own}' "
                f"where number = {entry.number}"
            )
            previous = own
        else:
            previous = entry.sha256
    return [*statements, f"update last_entry set number = {count}, sha256 = x'{previous}'"]


def cut(after: int) -> list[str]:
    return [f"delete from {t} where number > {after}" for t in ("entries", "entry_index")]


def test_a_chain_that_was_hashed_anew_is_told_by_a_witness_alone(sample: Path, tmp_path: Path) -> None:
    journal = damaged(sample, str(tmp_path), *rewritten(sample, 7))
    assert journal.verify() == []
    heads = [entry.head for entry in entries_of(sample)]
    assert journal.verify(heads[:6]) == []
    for head in heads[6:]:
        (problem,) = journal.verify([head])
        assert problem.number == head.number
        assert "is not the one that was witnessed" in problem.what


def test_an_end_that_was_cut_off_is_told_by_a_witness_alone(sample: Path, tmp_path: Path) -> None:
    unused = "delete from terms where id not in (select term from entry_index)"
    journal = damaged(sample, str(tmp_path), *cut(9), unused, rewritten(sample, 99, 9)[-1])
    assert journal.verify() == []
    heads = [entry.head for entry in entries_of(sample)]
    assert journal.verify(heads[:9]) == []
    assert [str(problem) for problem in journal.verify(heads[10:])] == [
        "entry 11 is missing: it was witnessed, and the journal now ends with entry 9",
        "entry 12 is missing: it was witnessed, and the journal now ends with entry 9",
    ]


def test_a_cut_end_is_told_by_the_journals_own_record_and_takes_no_more_entries(sample: Path, tmp_path: Path) -> None:
    journal = damaged(sample, str(tmp_path), *cut(9))
    assert "entry 10 is missing: the journal recorded entry 12 as its last" in told(journal.verify())
    with pytest.raises(
        UserError, match="changed from outside: it recorded entry 12 as its last, and ends with entry 9"
    ):
        journal.append("note", 1)
    with pytest.raises(UserError, match="verify it to see what is wrong"):
        journal.append_many([Draft("note", 1)])


def test_the_first_witness_that_disagrees_bounds_the_place_of_the_change(sample: Path, tmp_path: Path) -> None:
    journal = damaged(sample, str(tmp_path), *rewritten(sample, 7))
    heads = {entry.number: entry.head for entry in entries_of(sample)}
    first, second = journal.verify([heads[11], heads[4], heads[9], heads[2]])
    assert (first.number, second.number) == (9, 11)
    assert first.what.endswith("something between entry 5 and this one was changed")
    assert "something between" not in second.what
    # Witnessed again after it was changed, and changed once more: a second stretch has a bound of its own.
    (again,) = journal.verify([(10, "ab" * 32), *(entry.head for entry in journal.read(after_number=7, limit=2))])
    assert again.what.endswith("something between entry 10 and this one was changed")


def test_from_a_witnessed_entry_on_only_what_is_new_is_read(sample: Path, tmp_path: Path) -> None:
    heads = {entry.number: entry.head for entry in entries_of(sample)}
    journal = damaged(sample, str(tmp_path), "update entries set body = '{}' where number in (3, 10)")
    assert [problem.number for problem in journal.verify()] == [3, 10]
    assert [problem.number for problem in journal.verify([heads[8]], after_number=8)] == [10]
    assert journal.verify([heads[11], heads[2]], after_number=11) == []
    with pytest.raises(ValueError, match="entry 8 is not witnessed"):
        journal.verify([heads[7]], after_number=8)


def test_what_was_done_after_the_start_is_found_whatever_it_was(sample: Path, tmp_path: Path) -> None:
    heads = {entry.number: entry.head for entry in entries_of(sample)}
    for number, statements in enumerate(
        [
            rewritten(sample, 6), rewritten(sample, 5), cut(9), cut(3), ["delete from entries where number = 5"],
            ["delete from entries where number = 6"], rewritten(sample, 99, 3),
        ]
    ):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        journal = damaged(sample, str(folder), *statements)
        assert journal.verify([heads[5], heads[12]], after_number=5) != [], statements


def test_keys_of_many_subjects_come_without_the_entries(sample: Path) -> None:
    with Journal(sample, read_only=True) as journal:
        assert journal.names("one", ["s1", "nobody", "s1"]) == {"s1": ["01b", "07h"]}
        assert journal.names("two", []) == {}
        many = journal.names("one", [f"s{number}" for number in range(3_000)])
        assert set(many) == {"s0", "s1", "s2"}
        assert journal.at(3) == entries_of(sample)[2].head
        assert journal.at(13) is None


def test_a_witness_in_capitals_and_one_of_the_empty_journal_are_witnesses(sample: Path) -> None:
    with Journal(sample, read_only=True) as journal:
        head = journal.head()
        assert journal.verify([Head(head.number, head.sha256.upper()), Head(0, GENESIS)]) == []
        assert [problem.number for problem in journal.verify([(12, "ab" * 32), (3, "cd" * 32)])] == [3, 12]
        # Witnessed before and after somebody hashed it anew: one of the two is right, and that is not enough.
        (problem,) = journal.verify([head, (12, "ab" * 32)])
        assert str(problem) == f"entry 12 is not the one that was witnessed, with SHA-256 {'ab' * 32}"


@pytest.mark.parametrize(
    ("statement", "number", "words"),
    [
        ("delete from entry_index where number = 5", 5, "cannot be found by its index value all x"),
        ("delete from entry_index where number = 5", 5, "cannot be found by its index value n 4"),
        ("insert into entry_index select id, 1 from terms where value = 'x'", 1, "under the index value all x"),
        ("insert into entry_index select id, 77 from terms where value = 'x'", 77, "under the index value all x"),
        ("update entry_index set number = 4 where number = 5", 4, "under the index value n 4, which it does not have"),
        ("update terms set value = 'y' where value = 'x'", 2, "was changed"),
        ("delete from terms where value = 'x'", 2, "had its index values changed"),
        ("insert into terms values (99, 'n', 'new')", None, "the index value n new belongs to no entry"),
        ("update entries set terms = '[99999999999999999999999]' where number = 2", 2, "was changed"),
        ("update entries set terms = 'junk' where number = 2", 2, "had its index values changed"),
        ("update last_entry set number = 11", 12, "was inserted: the journal recorded entry 11 as its last"),
        ("update last_entry set sha256 = x'00'", 12, "is not the one that the journal recorded as its last"),
        ("delete from last_entry", None, "the journal's record of its last entry was removed"),
        ("drop index entry_key", None, "entry_key was removed from the file"),
        ("drop table terms", None, "terms was removed from the file"),
        ("drop table entries", None, "entries was removed from the file"),
        (
            "create trigger sly after insert on entries begin delete from entry_index; end",
            None,
            "the file has a trigger sly, which may change what is written",
        ),
    ],
)  # fmt: skip
def test_a_hand_in_the_index_or_the_tables_is_found_and_named(
    sample: Path, tmp_path: Path, statement: str, number: int | None, words: str
) -> None:
    problems = damaged(sample, str(tmp_path), statement).verify()
    assert [p for p in problems if p.number == number and words in p.what], told(problems)


def test_a_guard_that_was_taken_away_is_missed(sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    shutil.copy(sample, path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop trigger no_update_of_entries")
    assert told(Journal(path).verify()) == "no_update_of_entries was removed from the file"


def test_tables_of_other_tools_do_no_harm(sample: Path, tmp_path: Path) -> None:
    assert damaged(sample, str(tmp_path), "analyze", "create table of_a_backup_tool (x)").verify() == []


def test_of_many_problems_the_first_are_told_and_the_others_counted(sample: Path, tmp_path: Path) -> None:
    journal = damaged(sample, str(tmp_path), "update entries set body = '0'")
    problems = journal.verify(limit=5)
    assert [problem.number for problem in problems] == [1, 2, 3, 4, 5, None]
    assert str(problems[-1]) == "and 7 more problems"
    assert str(problems[0]) == "entry 1 was changed: its content does not have its SHA-256 any more"


def test_an_entry_alone_knows_whether_it_was_changed(sample: Path, tmp_path: Path) -> None:
    journal = damaged(sample, str(tmp_path), "update entries set body = '0' where number = 3")
    assert [entry.number for entry in journal.read() if not entry.intact] == [3]


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_damaged_byte_anywhere_in_the_file_never_goes_unseen_where_it_matters(
    sample: Path, place: float, bits: int
) -> None:
    """Whatever byte it is: every entry reads as it was, or it is told."""
    before = entries_of(sample)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.db"
        data = bytearray(sample.read_bytes())
        data[int(place * len(data))] ^= bits
        path.write_bytes(data)
        named: str | None = str(path)
        try:
            with Journal(path) as journal:
                if journal.verify() == []:
                    assert list(journal.read()) == before
                    assert [e for e in before if e.key and journal.get(e.kind, e.key) != e] == []
                    for value in "01234":
                        wanted = [e.number for e in before if e.index.get("n") == value]
                        assert [e.number for e in journal.read(index={"n": value})] == wanted
        except UserError as error:
            named = error.where
        assert named == str(path)


# --- how much


def test_memory_does_not_grow_with_a_journal(tmp_path: Path) -> None:
    """Appending, reading and verifying 30,000 entries (60 MB) takes no more than one transaction's worth."""
    program = """
import resource, sys
from mlops_assets.foundation import _journal_file
from mlops_assets.foundation import journal as module
module.BLOCK_ROWS, _journal_file._CACHE_KIB = 1_000, 2_048
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1 << 20)
journal = Journal(sys.argv[1])
index = {"a": "x", "b": "y"}
drafts = lambda count, name: (Draft("n", "x" * 2_000, key=f"{name}{n}", index=index) for n in range(count))
journal.append_many(drafts(3_000, "warm"))
list(journal.verify()), sum(1 for _ in journal.read())
before = peak()
journal.append_many(drafts(30_000, "more"))
assert journal.verify() == []
assert sum(1 for _ in journal.read(index=index)) == 33_000
print(peak() - before)
"""
    done = run(program, tmp_path / "j.db")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20


# --- as a resource


def test_a_journal_of_a_system_lies_in_its_own_file(tmp_path: Path) -> None:
    journals = Journals(root=str(tmp_path / "journals"))
    with journals.open("credit_risk", "decisions") as decisions, journals.open("other", "decisions") as others:
        decisions.append("note", 1)
        assert others.head().number == 0
    assert (tmp_path / "journals" / "credit_risk" / "decisions.db").is_file()
    with journals.open("credit_risk", "decisions", read_only=True) as reader:
        assert reader.head().number == 1
    with pytest.raises(UserError, match="there is no journal"):
        journals.open("credit_risk", "nothing", read_only=True)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Big", "a.b", "1st"])
def test_a_journal_has_a_name_that_a_file_may_have(tmp_path: Path, name: str) -> None:
    journals = Journals(root=str(tmp_path / "journals"))
    for pair in ((name, "log"), ("system", name)):
        with pytest.raises(UserError, match="cannot name a journal"):
            journals.open(*pair)
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_no_place_for_a_journal() -> None:
    with pytest.raises(UserError, match=r"s3://bucket: a journal needs the locks of a disk"):
        Journals(root="s3://bucket").open("system", "log")
