"""Downloads sound with yt-dlp where it is a separate file, after the picture.

The picture is complete by then, and it is what all stages need. Sound that can't be fetched costs
nothing else: a site that refuses it gets no more requests for sound for a while, but pictures are
requested as before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.host_throttle import Hosts, PassingProblem
from clipmill.stages.media.fetch.ytdlp_errors import Log, check_for_room, problem_of
from clipmill.stages.media.fetch.ytdlp_formats import picture_of

KIND = "sound"


@dataclass(frozen=True)
class SeparateSound:
    """The sound of a picture: its `formats`, and yt-dlp's `info` about both."""

    info: Mapping[str, Any]
    formats: Sequence[Mapping[str, Any]]
    picture_id: str
    cookies: Any = None

    @classmethod
    def of(cls, info: Mapping[str, Any], cookies: Any) -> SeparateSound | None:
        """The sound of a video if it is a separate format, else None."""
        picture = picture_of(info)
        if picture is None:
            return None
        formats = [one for one in info["requested_formats"] if one is not picture]
        return cls(info, formats, str(picture["format_id"]), cookies)


def fetch_sound(
    sound: SeparateSound,
    folder: Path,
    options: Mapping[str, Any],
    hosts: Hosts,
    wait_seconds: float,
) -> dict[str, Path]:
    """Downloads the sound; returns its files by format id.

    Raises RowFailed, or PassingProblem if another attempt may succeed. It doesn't wait for an
    overloaded host: `retry` requests the sound again.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import (
        not_waiting,
        only_by_program,
        polite_yt_dlp,
    )

    log = Log()
    files = {}
    with (
        not_waiting(hosts, wait_seconds),
        _by_kind(log, folder),
        polite_yt_dlp(hosts)({**options, "logger": log}) as downloader,
    ):
        downloader.stops_when_overloaded = hosts.kind is not None
        if sound.cookies is not None:
            downloader.cookiejar = sound.cookies
        for number, one in enumerate(sound.formats):
            source = {
                name: value
                for name, value in sound.info.items()
                if name not in ("requested_formats", "requested_downloads")
            } | dict(one)
            if (problem := only_by_program(source, downloader)) is not None:
                raise problem
            # The same name in each attempt, so that one resumes the last.
            path = folder / f"sound-{number}"
            downloader.dl(str(path), source)
            if not path.is_file():
                raise RowFailed("permanent", log.first_error or "the site gave no file")
            files[str(one["format_id"])] = path
    return files


def put_together(
    sound: SeparateSound,
    files: dict[str, Path],
    target: Path,
    options: Mapping[str, Any],
    hosts: Hosts,
) -> Path:
    """Merges the downloaded files into one, as yt-dlp merges picture and sound.

    The container is the one for both, even if only one is there. `target` has no suffix; `files`
    gives the files' new places afterwards. Raises RowFailed of kind bad_media if ffmpeg can't
    merge them.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import polite_yt_dlp

    polite = polite_yt_dlp(hosts)

    class Merging(polite):  # type: ignore[misc, valid-type]  # made at run time
        def dl(self, name: str, info: Mapping[str, Any], *_: Any, **__: Any) -> tuple[bool, bool]:
            """Moves the file that is there already."""
            key = str(info["format_id"])
            os.replace(files[key], name)
            files[key] = Path(name)
            return True, True

    log = Log()
    place = str(target).replace("%", "%%") + ".%(ext)s"
    # The files stay: if they can't be merged, the picture is used alone.
    ours = {"logger": log, "outtmpl": {"default": place}, "keepvideo": True}
    info = {name: value for name, value in sound.info.items() if name != "requested_downloads"}
    info["requested_formats"] = [
        one for one in sound.info["requested_formats"] if str(one["format_id"]) in files
    ]
    try:
        with _by_kind(log, target.parent), Merging({**options, **ours}) as downloader:
            # ffmpeg would fetch formats that it can fetch together.
            downloader.params["compat_opts"] = {
                *downloader.params.get("compat_opts", ()),
                "no-direct-merge",
            }
            downloader.process_info(info)
    except (RowFailed, PassingProblem) as problem:
        raise RowFailed("bad_media", f"can't be put into one file: {problem}") from problem
    made = Path(info.get("filepath") or place)
    if not made.is_file():
        raise RowFailed("bad_media", log.first_error or "yt-dlp made no file of what came")
    return made


@contextlib.contextmanager
def _by_kind(log: Any, folder: Path) -> Iterator[None]:
    """Turns yt-dlp's errors into failures of the right kind; a full disk stays one."""
    import yt_dlp

    try:
        yield
    except (RowFailed, PassingProblem):
        raise
    except (
        yt_dlp.utils.YoutubeDLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        check_for_room(error, folder)
        raise problem_of(error, log.first_error) from error
