"""The corpus of bad and odd media: what each file is, and its allowed outcomes.

Everything is generated from the seed in its name and from footage that PyAV renders, so the corpus
is always the same. `all_cases` lists it, `write` creates a folder of it.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import av

from tests.media import COLOURS, Scene, render

KEPT = "kept"
BAD = "failed bad_media"
CRASH = "failed crash"
GONE = "failed permanent"
TOO_LONG = "rejected download_videos.max_duration_seconds"
TOO_SHORT = "rejected split_clips.min_clip_seconds"
TWICE = "rejected download_videos.duplicate"
CORRUPT = "rejected split_clips.max_corrupt_share"
NO_SOURCE = "no source"

DAMAGED = frozenset((KEPT, BAD, CRASH, TOO_LONG, TOO_SHORT, CORRUPT))
"""The allowed outcomes of random damage."""

SIZE = (160, 96)
RATE = 25
CORNERS = {0: "upper left", 90: "lower left", 180: "lower right", 270: "upper right"}
FOUR_SHOTS = (
    (0.0, COLOURS["red"]),
    (1.0, COLOURS["blue"]),
    (2.0, COLOURS["red"]),
    (3.0, COLOURS["blue"]),
)
"""The contents of two concatenated films."""


@dataclass(frozen=True)
class Facts:
    """Expected facts about a file that is kept; None is not checked.

    `shots` are the background colours with the time from the first frame at which each begins;
    `corner` is the bright corner of the upright picture.
    """

    frames: int | None = 50
    seconds: float | None = 2.0
    size: tuple[int, int] | None = SIZE
    shots: tuple[tuple[float, tuple[int, int, int]], ...] | None = (
        (0.0, COLOURS["red"]),
        (1.0, COLOURS["blue"]),
    )
    corner: str | None = "upper left"
    first_seconds: float | None = None
    slack_seconds: float = 0.05
    slack_colour: int = 20


@dataclass(frozen=True)
class Case:
    """One file: `make` writes it, `allowed` are its correct outcomes.

    `facts` apply if it is kept.
    """

    family: str
    name: str
    file: str
    make: Callable[[Path], None]
    allowed: frozenset[str]
    facts: Facts | None = None


@dataclass
class Family:
    """Collects the cases of one family."""

    name: str
    cases: list[Case] = field(default_factory=list)

    def add(
        self,
        name: str,
        data: bytes | Callable[[Path], None],
        *allowed: str,
        facts: Facts | None = None,
        file: str | None = None,
        suffix: str = ".mp4",
    ) -> None:
        """Adds a file with these bytes, or one that a function writes."""
        make = data if callable(data) else functools.partial(_write_bytes, data=data)
        self.cases.append(
            Case(self.name, name, file or f"{_slug(name)}{suffix}", make, frozenset(allowed), facts)
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# Footage. A salt changes the bar's speed, so that no two files have the same bytes.

_QUIET = {"libx265": {"x265-params": "log-level=none"}}
# A key frame every ten frames, so that bytes are spread evenly over time.
_EVEN = {
    codec: {"g": "10"}
    for codec in (
        "libx264",
        "libx265",
        "libvpx",
        "libvpx-vp9",
        "libsvtav1",
        "mpeg2video",
        "mpeg4",
        "flv",
        "wmv2",
    )
}
os.environ.setdefault("SVT_LOG", "0")  # its encoder prints a lot
KINDS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "mp4": (".mp4", {}),
        "mp4 moov first": (".mp4", {"container_options": {"movflags": "+faststart"}}),
        "mp4 fragmented": (
            ".mp4",
            {"container_options": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}},
        ),
        "mp4 with sound": (".mp4", {"audio": True}),
        "mov": (".mov", {}),
        "mkv": (".mkv", {}),
        "mkv one-way": (".mkv", {"codec_options": {"bf": "0"}}),
        "mkv live": (".mkv", {"container_options": {"live": "1"}}),
        "webm": (".webm", {"codec": "libvpx-vp9"}),
        "webm vp8": (".webm", {"codec": "libvpx"}),
        "webm av1": (".webm", {"codec": "libsvtav1"}),
        "mp4 av1": (".mp4", {"codec": "libsvtav1"}),
        "mp4 hevc": (".mp4", {"codec": "libx265"}),
        "mp4 mpeg4": (".mp4", {"codec": "mpeg4"}),
        "ts": (".ts", {"codec": "mpeg2video", "ticks": 1}),
        "ts h264": (".ts", {}),
        "mpg": (".mpg", {"codec": "mpeg2video", "ticks": 1}),
        "avi": (".avi", {"codec": "mjpeg", "pixels": "yuvj420p", "ticks": 1}),
        "flv": (".flv", {"codec": "flv", "ticks": 1}),
        "flv h264": (".flv", {}),
        "wmv": (".wmv", {"codec": "wmv2"}),
        "3gp": (".3gp", {"codec": "h263", "size": (176, 144)}),
    }
)


@functools.cache
def film(kind: str, salt: int = 0, seconds: float = 1.0) -> bytes:
    """The bytes of a film of two shots with these durations."""
    suffix, settings = KINDS[kind]
    return rendered(suffix, salt, seconds, **settings)


def rendered(suffix: str, salt: int = 0, seconds: float = 1.0, **settings: object) -> bytes:
    """A film with settings of `tests.media.render`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{suffix}"
        write_film(path, salt, seconds, **settings)
        return path.read_bytes()


def write_film(path: Path, salt: int = 0, seconds: float = 1.0, **settings: object) -> list[float]:
    """Writes a film of two shots; with `frames=1` only its first frame."""
    codec = str(settings.get("codec", "libx264"))
    given = settings.pop("codec_options", None) or {}
    options = {**_EVEN.get(codec, {}), **_QUIET.get(codec, {}), **given}
    scenes = two_shots(salt, seconds)
    if settings.pop("frames", None) == 1:
        scenes = (Scene("red", 1 / settings.get("rate", RATE), speed=3 + salt),)
    return render(
        path, scenes, **{"size": SIZE, "rate": RATE, **settings, "codec_options": options}
    )


def two_shots(salt: int, seconds: float = 1.0) -> tuple[Scene, Scene]:
    """Different salts below a few thousand give different pictures."""
    return (
        Scene("red", seconds, speed=3 + salt % 100),
        Scene("blue", seconds, speed=3 + salt // 100),
    )


def as_it_is(packet: av.Packet, number: int) -> bool:
    """Copies a packet."""
    return True


def remuxed(
    data: bytes,
    suffix: str,
    change: Callable[[av.Packet, int], bool] = as_it_is,
    options: Mapping[str, str] | None = None,
) -> bytes:
    """The same packets in another container.

    `change` gets each packet with its number, may change it, and returns whether to keep it.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / f"target{suffix}"
        source.write_bytes(data)
        with (
            av.open(str(source)) as before,
            av.open(str(target), "w", options=dict(options or {})) as after,
        ):
            streams = {s.index: after.add_stream_from_template(s) for s in before.streams}
            for number, packet in enumerate(before.demux()):
                if packet.size and change(packet, number):
                    packet.stream = streams[packet.stream.index]
                    after.mux(packet)
        return target.read_bytes()


def all_cases() -> list[Case]:
    """The whole corpus, always in the same order."""
    from tests.faults import corpus_damage, corpus_names, corpus_odd, corpus_strange

    cases = [
        case
        for module in (corpus_damage, corpus_odd, corpus_strange, corpus_names)
        for family in module.families()
        for case in family.cases
    ]
    for what in ("name", "file"):
        names = [getattr(case, what) for case in cases]
        assert len(set(names)) == len(names), [n for n in names if names.count(n) > 1]
    return cases


def named(cases: list[Case], names: Iterator[str] | tuple[str, ...]) -> list[Case]:
    """The cases of these names, in the order of the corpus."""
    wanted = set(names)
    found = [case for case in cases if case.name in wanted]
    assert len(found) == len(wanted), wanted - {case.name for case in found}
    return found


def write(folder: Path, cases: list[Case], neighbour_every: int = 10) -> list[Path]:
    """Writes the files; returns the intact files among them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        case.make(folder / case.file)
    neighbours = []
    for number, case in enumerate(sorted(cases, key=lambda case: case.file)):
        if number % neighbour_every == 0:
            path = folder / f"{Path(case.file).stem[:100]}~neighbour.mp4"
            if path.name.isascii() and path.name.isprintable() and path.name[0].isalnum():
                write_film(path, salt=1000 + len(neighbours))
                neighbours.append(path)
    return neighbours
