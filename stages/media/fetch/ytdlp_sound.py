"""Sound by yt-dlp, where it lies apart from the picture: fetched after it, by itself.

The picture is there by then, and all stages see that. Sound that can't be had costs nothing else,
and a site that refuses it is asked for no more of it for a while, but for pictures as before.
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
class Sound:
    """The sound that goes with a picture: `formats` of `info`, which is yt-dlp's of both."""

    info: Mapping[str, Any]
    formats: Sequence[Mapping[str, Any]]
    picture_id: str
    cookies: Any = None

    @classmethod
    def of(cls, info: Mapping[str, Any], cookies: Any) -> Sound | None:
        """The sound of a video whose picture and sound were chosen apart; else None."""
        picture = picture_of(info)
        if picture is None:
            return None
        formats = [one for one in info["requested_formats"] if one is not picture]
        return cls(info, formats, str(picture["format_id"]), cookies)


def fetch_sound(
    sound: Sound, folder: Path, options: Mapping[str, Any], hosts: Hosts, wait_seconds: float,
) -> dict[str, Path]:
    """The files of the sound, by the ids of their formats.

    Raises RowFailed, or PassingProblem where another try may do. A host that is overloaded is not
    waited for: `retry` asks again.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import (
        not_waiting,
        only_by_program,
        polite_yt_dlp,
    )

    log = Log()
    files = {}
    with (not_waiting(hosts, wait_seconds), _by_kind(log, folder),
          polite_yt_dlp(hosts)({**options, "logger": log}) as downloader):
        downloader.stops_when_overloaded = hosts.kind is not None
        if sound.cookies is not None:
            downloader.cookiejar = sound.cookies
        for number, one in enumerate(sound.formats):
            source = {name: value for name, value in sound.info.items()
                      if name not in ("requested_formats", "requested_downloads")} | dict(one)
            if (problem := only_by_program(source, downloader)) is not None:
                raise problem
            # The same name in each try, so that one goes on where the last broke off.
            path = folder / f"sound-{number}"
            downloader.dl(str(path), source)
            if not path.is_file():
                raise RowFailed("permanent", log.first_error or "the site gave no file")
            files[str(one["format_id"])] = path
    return files


def put_together(
    sound: Sound, files: dict[str, Path], target: Path, options: Mapping[str, Any], hosts: Hosts
) -> Path:
    """Makes one file of those that came, as yt-dlp does of picture and sound.

    Its container is the one that both go into, also where only one is there. `target` has no
    suffix; `files` say afterwards where they lie now. Raises RowFailed of kind bad_media where
    ffmpeg can't make anything of them.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import polite_yt_dlp

    polite = polite_yt_dlp(hosts)

    class Merging(polite):  # type: ignore[misc, valid-type]  # made at run time
        def dl(self, name: str, info: Mapping[str, Any], *_: Any, **__: Any) -> tuple[bool, bool]:
            """Hands on what is there."""
            key = str(info["format_id"])
            os.replace(files[key], name)
            files[key] = Path(name)
            return True, True

    log = Log()
    place = str(target).replace("%", "%%") + ".%(ext)s"
    # The files stay: where they don't go together, the picture does alone.
    ours = {"logger": log, "outtmpl": {"default": place}, "keepvideo": True}
    info = {name: value for name, value in sound.info.items() if name != "requested_downloads"}
    info["requested_formats"] = [one for one in sound.info["requested_formats"]
                                 if str(one["format_id"]) in files]
    try:
        with _by_kind(log, target.parent), Merging({**options, **ours}) as downloader:
            # ffmpeg would fetch formats that it can fetch together.
            downloader.params["compat_opts"] = {
                *downloader.params.get("compat_opts", ()), "no-direct-merge"}
            downloader.process_info(info)
    except (RowFailed, PassingProblem) as problem:
        raise RowFailed("bad_media", f"can't be put into one file: {problem}") from problem
    made = Path(info.get("filepath") or place)
    if not made.is_file():
        raise RowFailed("bad_media", log.first_error or "yt-dlp made no file of what came")
    return made


@contextlib.contextmanager
def _by_kind(log: Any, folder: Path) -> Iterator[None]:
    """Raises what comes out of yt-dlp as a failure of its kind; a full disk as what it is."""
    import yt_dlp


    try:
        yield
    except (RowFailed, PassingProblem):
        raise
    except (yt_dlp.utils.YoutubeDLError, OSError, ValueError, LookupError, TypeError,
            AttributeError) as error:
        check_for_room(error, folder)
        raise problem_of(error, log.first_error) from error
