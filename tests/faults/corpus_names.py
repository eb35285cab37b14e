"""Difficult names, and folder entries that are not plain files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.corpus import BAD, GONE, KEPT, NO_SOURCE, Facts, Family, film

NAMES = {
    "single quote": "it's.mp4",
    "double quotes": 'a "film".mp4',
    "newline": "two\nlines.mp4",
    "carriage return": "two\rlines.mp4",
    "tab": "a\ttab.mp4",
    "bell and escape": "bell\a\x1b[31mred.mp4",
    "emoji": "🎬 film 👩‍👩‍👧.mp4",
    "leading dash": "-i.mp4",
    "two leading dashes": "--output.mp4",
    "255 bytes": "n" * 251 + ".mp4",
    "255 bytes of emoji": "🎬" * 62 + "aaa.mp4",
    "backslash": "back\\slash.mp4",
    "stars": "*?[a].mp4",
    "percent": "%03d.mp4",
    "percent escapes": "a%20b%2F..%00.mp4",
    "hash and question mark": "a?b=c#d.mp4",
    "colon": "http:film.mp4",
    "like a protocol": "concat:a|b.mp4",
    "like a pipe": "pipe:0.mp4",
    "like an option": "file,subfile,,start,10,,:x.mp4",
    "semicolon and dollar": "$(touch x);`y`&.mp4",
    "spaces": "  a  .mp4",
    "dots": "a..mp4",
    "composed": "caf\u00e9.mp4",
    "decomposed": "cafe\u0301.mp4",
    "right to left": "\u202egpj.mp4",
    "other letters": "фильм 映画 فيلم.mp4",
    "sql": "'; DROP TABLE clips; --.mp4",
    "html": "<img src=x onerror=alert(1)>.mp4",
    "braces": "{a,b} ${HOME} {{x}}.mp4",
    "capital suffix": "FILM.Mp4",
}


def families() -> Iterator[Family]:
    yield names()
    yield entries()


def names() -> Family:
    family = Family("names")
    for number, (name, file) in enumerate(NAMES.items()):
        assert len(os.fsencode(file)) <= 255
        family.add(f"name with {name}", film("mp4", 340 + number), KEPT, facts=Facts(), file=file)
    family.add("name that is no text", film("mp4", 380), GONE, file=os.fsdecode(b"caf\xe9.mp4"))
    return family


def entries() -> Family:
    family = Family("no plain files")

    def add(name: str, make: Callable[[Path], object], *allowed: str, facts=None) -> None:
        family.add(name, lambda path: make(path) and None, *allowed, facts=facts)

    add("fifo", os.mkfifo, GONE)
    add("folder called mp4", Path.mkdir, NO_SOURCE)
    add("link to itself", lambda path: path.symlink_to(path.name), GONE)
    add("link to nothing", lambda path: path.symlink_to("nothing.mp4"), GONE)
    add("link to endless zeros", lambda path: path.symlink_to("/dev/zero"), GONE)
    add("link to a folder", lambda path: path.symlink_to("/"), NO_SOURCE)
    add("link to a film", _linked, KEPT, facts=Facts())
    # Permissions don't apply to root.
    add("not allowed to be read", _locked, KEPT if os.geteuid() == 0 else GONE, facts=Facts())
    add("sparse file of 10 GB", lambda path: _sparse(path, 10**10), BAD)
    add(
        "film with 1 GB of hole behind it",
        lambda path: _sparse(path, 10**9, film("mkv", 383)),
        KEPT,
        BAD,
    )
    return family


def _linked(path: Path) -> None:
    whole = path.with_name(f".{path.stem} target")
    whole.write_bytes(film("mp4", 381))
    path.symlink_to(whole.name)


def _locked(path: Path) -> None:
    path.write_bytes(film("mp4", 382))
    path.chmod(0)


def _sparse(path: Path, size_bytes: int, begins: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(begins)
        file.truncate(size_bytes)
