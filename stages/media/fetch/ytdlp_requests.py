"""Controls yt-dlp's network requests: spaced, limited, and never by an unwatched program."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from http.cookiejar import Cookie
from typing import Any
from urllib.parse import urlsplit

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.http_answers import (
    heed,
    is_answer,
    is_challenge,
    problem_of_status,
)
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.proxies import check_environment
from clipmill.stages.media.fetch.turns import take_turn
from clipmill.stages.media.fetch.ytdlp_formats import picture_alone
from clipmill.stages.media.fetch.ytdlp_process import Worker
from clipmill.stages.media.isolation.ffmpeg_program import give_ffmpeg_to_yt_dlp

# The longest page, description or manifest that is read, because it is held in memory.
_MAX_PAGE_BYTES = 64 << 20
MAX_SUBTITLE_BYTES = 16 << 20
_NETWORK_SCHEMES = ("http", "https", "ftp", "ftps", "rtmp", "rtmps", "rtsp", "mms", "ws", "wss")
# yt-dlp's request handlers whose connections Python makes.
_SEEN = ("Urllib", "Requests", "Websockets")
# The option that makes yt-dlp fetch a part with ffmpeg.
_OF_A_PART = ("section_start", "section_end")
# yt-dlp's downloaders that connect from its own process.
_OWN = ("HttpFD", "HlsFD", "DashSegmentsFD", "IsmFD", "F4mFD", "MhtmlFD", "BunnyCdnFD", "SoopVodFD")


def polite_yt_dlp(worker: Worker) -> type:
    """yt-dlp's class, with requests that take turns and answers of bounded size.

    With `leaves_sound`, of picture and sound in two files it fetches only the picture, and sets
    `has_left_sound`. With `stops_when_overloaded`, it raises PassingProblem when a host reports
    overload, whatever yt-dlp would do.
    """
    import yt_dlp

    give_ffmpeg_to_yt_dlp()

    class Polite(yt_dlp.YoutubeDL):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._asking = 0
            self._answers: weakref.WeakSet[Any] = weakref.WeakSet()
            self._turn = threading.local()
            self._subtitle_bytes: int | None = None
            self.leaves_sound = self.has_left_sound = self.stops_when_overloaded = False
            check_environment()
            worker.asking, worker.is_receiving = self._ask, self._is_receiving
            super().__init__(*args, **kwargs)

        def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
            if worker.refuses_addresses:
                # The connections of other handlers are invisible to Python.
                handlers = [one for one in handlers if one.RH_KEY in _SEEN]
            return super().build_request_director(handlers, preferences)

        def urlopen(self, request: Any) -> Any:
            from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

            url = request if isinstance(request, str) else getattr(request, "url", "")
            take_turn(worker, url)
            self._turn.is_taken = True
            self._asking += 1
            try:
                answer = super().urlopen(request)
            except HTTPError as error:
                # Many extractors continue without what they requested.
                asked, headers = error.response.url or url, error.response.headers
                heed(worker, error.status, asked, headers)
                if self.stops_when_overloaded and not is_challenge(headers):
                    problem = problem_of_status(error.status, asked, headers.get("Retry-After"))
                    if isinstance(problem, PassingProblem) and problem.whole_host:
                        raise problem from error
                raise
            except TransportError:
                raise
            except (ValueError, RequestError) as error:
                # It could not be sent: a redirect may have led to an invalid host.
                raise RowFailed(
                    "permanent", f"{url[:200]!r}, or its target, cannot be requested: {error}"
                ) from error
            finally:
                self._asking -= 1
                self._turn.is_taken = False
            self._answers.add(answer)
            if is_answer(answer.status):
                worker.answered(urlsplit(answer.url or url).hostname or "")
            answer.read = functools.partial(self._read, answer.read)
            return answer

        def process_subtitles(self, *_: Any) -> None:
            """Leaves subtitles for later: their failure must not affect the media."""

        def choose_subtitles(self, *of_video: Any) -> dict[str, Any] | None:
            """The tracks selected by yt-dlp's own options."""
            chosen: dict[str, Any] | None = super().process_subtitles(*of_video)
            return chosen

        def dl(self, name: Any, info: Any, subtitle: bool = False, test: bool = False) -> Any:
            self._subtitle_bytes = 0 if subtitle else None
            try:
                return super().dl(name, info, subtitle, test)
            finally:
                self._subtitle_bytes = None

        def process_info(self, info: dict[str, Any]) -> None:
            """Leaves separate sound for later: its failure must not affect the picture."""
            alone = picture_alone(info, self.params) if self.leaves_sound else None
            if alone is None:
                super().process_info(info)
                return
            fixup = self.params.get("fixup")
            self.params["fixup"] = "never"  # as when both are fetched: merging repairs the file
            try:
                super().process_info(alone)
            finally:
                self.params["fixup"] = fixup
            if "filepath" in alone:
                info["filepath"], self.has_left_sound = alone["filepath"], True

        def _ask(self, host: str) -> None:
            """Waits for a turn for a request that has not had one: it may follow a redirect."""
            from yt_dlp.networking.exceptions import TransportError

            if getattr(self._turn, "is_taken", False):
                self._turn.is_taken = False
                return
            if before := worker.last_asked():
                worker.answered(before)
            try:
                worker.wait(host)
            except RowFailed as problem:
                # Any other exception makes yt-dlp repeat the request with another library.
                raise TransportError(cause=problem) from problem

        def take_cookies(self, cookies: Sequence[Cookie]) -> None:
            for cookie in cookies:
                self.cookiejar.set_cookie(cookie)

        def _read(self, read: Callable[..., bytes], amount: int | None = None) -> bytes:
            piece = _read_bounded(read, amount)
            if self._subtitle_bytes is not None:
                self._subtitle_bytes += len(piece)
                if self._subtitle_bytes > MAX_SUBTITLE_BYTES:
                    # yt-dlp treats this as an error of the subtitles alone.
                    raise OSError(f"subtitles of more than {MAX_SUBTITLE_BYTES >> 20} MB")
            return piece

        def _is_receiving(self) -> bool:
            return self._asking > 0 or any(not answer.closed for answer in list(self._answers))

    return Polite


def _read_bounded(read: Callable[..., bytes], amount: int | None = None) -> bytes:
    if amount is not None and amount >= 0:
        return read(amount)
    pieces, total = [], 0
    while piece := read(1 << 20):
        pieces.append(piece)
        total += len(piece)
        if total > _MAX_PAGE_BYTES:
            raise RowFailed("permanent", f"a page of more than {_MAX_PAGE_BYTES >> 20} MB")
    return b"".join(pieces)


def only_by_program(info: Mapping[str, Any], downloader: Any, worker: Worker) -> RowFailed | None:
    """The objection to a download by an external program, which makes its own connections."""
    from yt_dlp.downloader import get_suitable_downloader

    for one in info.get("requested_formats") or [info]:
        fetcher = get_suitable_downloader(
            {**one, **{name: info[name] for name in _OF_A_PART if name in info}}, downloader.params
        )
        if fetcher is not None and fetcher.__name__ in _OWN:
            continue
        scheme = str(one.get("url")).partition(":")[0].lower()
        if scheme not in _NETWORK_SCHEMES:
            # ffmpeg would open a local file, or use another of its input protocols.
            return RowFailed(
                "permanent",
                f"the site names an invalid network address: {str(one.get('url'))[:200]}",
            )
        if worker.refuses_addresses:
            return RowFailed(
                "permanent",
                f"fetched over {one.get('protocol')} by a program, which can't be "
                "kept from private addresses; download_videos.private_addresses=allow allows it",
            )
    return None
