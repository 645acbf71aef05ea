"""Long-term memory: documents on disk, found again by words and by likeness, cited exactly.

SQLite with FTS5 for words (BM25) and float32 vectors for likeness (exact cosine, NumPy); the two
rankings are joined by reciprocal ranks. A vector is a hashed count of words and of groups of three
letters: it knows spellings and no meanings, needs no download and gives the same numbers
everywhere. Every hit is a span of its document; it is checked to be that when it is read.
Source: Cormack et al. 2009 (reciprocal rank fusion); Weinberger et al. 2009 (feature hashing).
"""

import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from k2lab.errors import InputError, MemoryFileError

VERSION = 1
WIDTH = 256  # of a vector
PASSAGE = 400  # characters of a passage, about; it ends where a sentence does
RANKS = 60  # of reciprocal rank fusion: how little the first places stand out
DEEP = 50  # hits that each ranking gives to the joint one

_WORD = re.compile(r"\w+")
_END = re.compile(r"(?<=[.!?])\s+|\n{2,}")

SCHEMA = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, source TEXT UNIQUE, text TEXT, sha256 TEXT);
CREATE TABLE passages (id INTEGER PRIMARY KEY, document INTEGER, start INTEGER, stop INTEGER,
                       vector BLOB);
CREATE VIRTUAL TABLE words USING fts5(text, tokenize = "unicode61 remove_diacritics 2");
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage, and exactly where it stands."""

    source: str
    start: int  # in characters
    stop: int
    text: str
    score: float  # of the joint ranking; comparable within one search

    @property
    def citation(self) -> str:
        """`source:start-stop`, which `Library.cited` resolves."""
        return f"{self.source}:{self.start}-{self.stop}"


class Library:
    """Documents in one file, or in memory. Safe to use from several threads."""

    def __init__(self, path: str | Path | None = None) -> None:
        """Opens the file, or makes it; without a path the documents end with this object."""
        self.path = path
        self._lock = threading.RLock()
        self._vectors: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self._seen = 0  # the file's state, as far as other connections change it, at that time
        try:
            self._database = sqlite3.connect(
                ":memory:" if path is None else str(path), check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise _unreadable(path, str(error)) from error
        try:
            version = self._version() or self._made()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise _unreadable(path, str(error)) from error
        if version != VERSION:
            self._database.close()
            what = f"it is of version {version}" if version else "it holds tables of something else"
            raise _unreadable(path, what)

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _made(self) -> int:
        """The version, where the file was empty: then all of it is made, or nothing."""
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")  # one that was quicker has made it already
            empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            for statement in SCHEMA.split(";") if empty else ():
                database.execute(statement)
            if empty:
                database.execute(f"PRAGMA user_version = {VERSION}")
            return self._version()

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """The database, for this thread; what is done there is done as a whole, or not at all."""
        try:
            with self._lock, self._database as database:
                yield database
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # busy, closed or full: not damaged
                raise
            raise _unreadable(self.path, str(error)) from error

    def __len__(self) -> int:
        with self._alone() as database:
            return int(database.execute("SELECT count(*) FROM documents").fetchone()[0])

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._database.close()

    def add(self, source: str, text: str) -> None:
        """Take a document in; one of the same source is replaced, the same text changes nothing."""
        if not source or ":" in source or not text.strip():
            raise InputError(
                f"A document from {source!r} with {len(text)} characters.",
                expected="a source without a colon, and some text.",
                mend="Name the document after its file or its subject.",
            )
        digest = _digest(text)
        with self._alone() as database:
            old = database.execute(
                "SELECT id, sha256 FROM documents WHERE source = ?", (source,)
            ).fetchone()
            if old is not None and old[1] == digest:
                return
            if old is not None:
                self._forget(database, old[0])
            cursor = database.execute(
                "INSERT INTO documents (source, text, sha256) VALUES (?, ?, ?)",
                (source, text, digest),
            )
            for start, stop in passages(text):
                vector = embedded(text[start:stop]).tobytes()
                made = database.execute(
                    "INSERT INTO passages (document, start, stop, vector) VALUES (?, ?, ?, ?)",
                    (cursor.lastrowid, start, stop, vector),
                )
                database.execute(
                    "INSERT INTO words (rowid, text) VALUES (?, ?)",
                    (made.lastrowid, text[start:stop]),
                )
            self._vectors = None

    def add_folder(self, folder: Path) -> int:
        """Take in all .md and .txt files of a folder; their number."""
        files = sorted(each for each in folder.iterdir() if each.suffix in (".md", ".txt"))
        for each in files:
            self.add(each.name, each.read_text(encoding="utf-8"))
        return len(files)

    def forget(self, source: str) -> bool:
        """Whether there was such a document; it is gone."""
        with self._alone() as database:
            old = database.execute(
                "SELECT id FROM documents WHERE source = ?", (source,)
            ).fetchone()
            if old is not None:
                self._forget(database, old[0])
            self._vectors = None
            return old is not None

    def search(self, query: str, k: int = 5) -> tuple[Hit, ...]:
        """The passages that fit best, the best first; none where nothing fits at all."""
        with self._alone() as database:
            database.execute("BEGIN")  # one state of the file, whoever else writes to it
            scores: dict[int, float] = {}
            for ranking in (self._by_words(query), self._by_likeness(query)):
                for place, passage in enumerate(ranking):
                    scores[passage] = scores.get(passage, 0.0) + 1 / (RANKS + place + 1)
            best = sorted(scores, key=lambda each: (-scores[each], each))[:k]
            return tuple(self._hit(each, scores[each]) for each in best)

    def cited(self, citation: str) -> str:
        """The text that a citation stands for."""
        source, _, span = citation.rpartition(":")
        found = re.fullmatch(r"(\d+)-(\d+)", span)
        with self._alone() as database:
            row = database.execute(
                "SELECT text, sha256 FROM documents WHERE source = ?", (source,)
            ).fetchone()
        if found is None or row is None or not 0 <= int(found[1]) < int(found[2]) <= len(row[0]):
            raise InputError(
                f"The citation {citation[:60]!r} stands for nothing here.",
                expected="`source:start-stop` with a span inside a document of this library.",
                mend="Copy it from a hit.",
            )
        if _digest(row[0]) != row[1]:
            raise _changed(self.path, source)
        return str(row[0][int(found[1]) : int(found[2])])

    def _by_words(self, query: str) -> list[int]:
        words = _WORD.findall(query)
        if not words:
            return []
        match = " OR ".join(f'"{word}"' for word in words)
        rows = self._database.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?",
            (match, DEEP),
        )
        return [int(row[0]) for row in rows]

    def _by_likeness(self, query: str) -> list[int]:
        seen = int(self._database.execute("PRAGMA data_version").fetchone()[0])
        if self._vectors is None or seen != self._seen:
            self._seen = seen
            rows = self._database.execute("SELECT id, vector FROM passages ORDER BY id").fetchall()
            ids = np.array([row[0] for row in rows], np.int64)
            data = b"".join(row[1] for row in rows)
            self._vectors = ids, np.frombuffer(data, np.float32).reshape(len(rows), WIDTH)
        ids, vectors = self._vectors
        cosine = vectors @ embedded(query)
        order = np.lexsort((ids, -cosine))[:DEEP]
        return [int(ids[each]) for each in order if cosine[each] > 0]

    def _hit(self, passage: int, score: float) -> Hit:
        source, text, digest, start, stop = self._database.execute(
            "SELECT source, text, sha256, start, stop FROM passages JOIN documents "
            "ON documents.id = document WHERE passages.id = ?",
            (passage,),
        ).fetchone()
        if _digest(text) != digest or not 0 <= start < stop <= len(text):
            raise _changed(self.path, source)
        return Hit(source, start, stop, text[start:stop], score)

    @staticmethod
    def _forget(database: sqlite3.Connection, document: int) -> None:
        database.execute(
            "DELETE FROM words WHERE rowid IN (SELECT id FROM passages WHERE document = ?)",
            (document,),
        )
        database.execute("DELETE FROM passages WHERE document = ?", (document,))
        database.execute("DELETE FROM documents WHERE id = ?", (document,))


def passages(text: str) -> Iterator[tuple[int, int]]:
    """Spans of a text, in order, each some sentences long and without white space at its ends."""
    edges = [0, *(found.end() for found in _END.finditer(text)), len(text)]
    start = 0
    for place, stop in enumerate(edges):
        following = edges[place + 1] if place + 1 < len(edges) else None
        if following is not None and following - start <= PASSAGE:
            continue
        piece = text[start:stop]
        inner = piece.strip()
        if inner:
            begin = start + piece.index(inner)
            yield begin, begin + len(inner)
        start = stop


def embedded(text: str) -> NDArray[np.float32]:
    """The vector of a text, of length 1 (0 for a text without words) [WIDTH]."""
    vector = np.zeros(WIDTH, np.float32)
    for word in _WORD.findall(text.casefold()):
        for feature, weight in _features(word):
            place = feature % WIDTH
            vector[place] += weight if feature & (1 << 32) else -weight
    vector = np.sign(vector) * np.sqrt(np.abs(vector))  # a word that comes often counts less
    norm = float(np.linalg.norm(vector))
    return vector / np.float32(norm) if norm else vector


@lru_cache(maxsize=65_536)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    """Hashed features of a word: itself, and its groups of three letters with less weight."""
    padded = f"^{word}$"
    groups = {padded[i : i + 3] for i in range(len(padded) - 2)}
    share = 1 / max(1, len(groups))
    return ((_hash(word), 1.0), *((_hash(f"3 {each}"), share) for each in sorted(groups)))


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _changed(path: str | Path | None, source: str) -> MemoryFileError:
    return _unreadable(path, f"the text of {source!r} is not as it was taken in")


def _unreadable(path: str | Path | None, why: str) -> MemoryFileError:
    return MemoryFileError(
        f"The memory {path or 'of this process'} cannot be read: {why}.",
        expected=f"a file that a Library of version {VERSION} wrote.",
        mend="Name another file; where it is a Library's, delete it and add the documents again.",
    )
