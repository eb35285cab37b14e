"""Downloads sound with yt-dlp if it is a separate file, after the picture.

By then the picture, which all stages need, is complete. Sound that can't be fetched affects
nothing else: a site that refuses it gets no more requests for sound for a while, but requests for
pictures continue.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.ytdlp_errors import Log, failures_by_kind
from clipmill.stages.media.fetch.ytdlp_formats import picture_of
from clipmill.stages.media.fetch.ytdlp_process import Worker

KIND = "sound"


@dataclass(frozen=True)
class SeparateSound:
    """The separate sound of a picture: its `formats`, and yt-dlp's `info` about both."""

    info: Mapping[str, Any]
    formats: Sequence[Mapping[str, Any]]
    picture_id: str
    cookies: Sequence[Cookie] = ()

    @classmethod
    def of(cls, info: Mapping[str, Any], cookies: Sequence[Cookie]) -> SeparateSound | None:
        """The sound of a video if it is a separate format, else None."""
        picture = picture_of(info)
        if picture is None:
            return None
        formats = [one for one in info["requested_formats"] if one is not picture]
        return cls(info, formats, str(picture["format_id"]), cookies)


def fetch_sound(
    worker: Worker, sound: SeparateSound, folder: Path, options: Mapping[str, Any]
) -> dict[str, Path]:
    """Downloads the sound; returns its files by format id.

    Raises RowFailed, or PassingProblem if another attempt may succeed.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import only_by_program, polite_yt_dlp

    log = Log()
    files = {}
    with (
        failures_by_kind(log, folder),
        polite_yt_dlp(worker)({**options, "logger": log}) as downloader,
    ):
        downloader.stops_when_overloaded = worker.kind is not None
        downloader.take_cookies(sound.cookies)
        for number, one in enumerate(sound.formats):
            source = {
                name: value
                for name, value in sound.info.items()
                if name not in ("requested_formats", "requested_downloads")
            } | dict(one)
            if (problem := only_by_program(source, downloader, worker)) is not None:
                raise problem
            # The same name in each attempt, so that the next attempt resumes it.
            path = folder / f"sound-{number}"
            downloader.dl(str(path), source)
            if not path.is_file():
                raise RowFailed("permanent", log.first_error or "the site gave no file")
            files[str(one["format_id"])] = path
    return files


def put_together(
    worker: Worker,
    sound: SeparateSound,
    files: Mapping[str, Path],
    target: Path,
    options: Mapping[str, Any],
) -> Path:
    """Merges the downloaded files into one, as yt-dlp merges picture and sound.

    The container is the one for both, even if only one is there. `target` has no suffix. Raises
    RowFailed of kind bad_media if ffmpeg can't merge them; the `files` are kept in any case.
    """
    from clipmill.stages.media.fetch.ytdlp_requests import polite_yt_dlp

    polite = polite_yt_dlp(worker)

    class Merging(polite):  # type: ignore[misc, valid-type]  # made at run time
        def dl(self, name: str, info: Mapping[str, Any], *_: Any, **__: Any) -> tuple[bool, bool]:
            """Uses the file that is already there."""
            file = files[str(info["format_id"])]
            Path(name).unlink(missing_ok=True)
            try:
                os.link(file, name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, name)
            return True, True

    log = Log()
    place = str(target).replace("%", "%%") + ".%(ext)s"
    ours = {"logger": log, "outtmpl": {"default": place}, "keepvideo": True}
    info = {name: value for name, value in sound.info.items() if name != "requested_downloads"}
    info["requested_formats"] = [
        one for one in sound.info["requested_formats"] if str(one["format_id"]) in files
    ]
    try:
        with failures_by_kind(log, target.parent), Merging({**options, **ours}) as downloader:
            # ffmpeg would fetch formats together that it can.
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
