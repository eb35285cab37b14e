"""What yt-dlp asks the network for: in turns, in bounds, and by nothing that can't be watched."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from schemas.errors import RowFailed
from stages.media.hosts import Hosts
from stages.media.http import is_answer, take_turn
from stages.media.watch import current

# The longest page, description or manifest that is read: all of it is in memory.
_MAX_PAGE_BYTES = 64 << 20
# yt-dlp's downloaders that make their connections in this process.
_OWN = ("HttpFD", "HlsFD", "DashSegmentsFD", "IsmFD", "F4mFD", "MhtmlFD", "BunnyCdnFD", "SoopVodFD")


def polite_yt_dlp(hosts: Hosts) -> type:
    """yt-dlp's class, with requests that take turns, and answers that don't fill the memory.

    A redirect that it follows takes no turn of its own.
    """
    import yt_dlp

    class Polite(yt_dlp.YoutubeDL):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._asking = 0
            self._answers: weakref.WeakSet = weakref.WeakSet()
            super().__init__(*args, **kwargs)

        def urlopen(self, request: Any) -> Any:
            url = request if isinstance(request, str) else getattr(request, "url", "")
            watch = current()
            if watch is not None:
                watch.is_receiving = self._is_receiving
            take_turn(hosts, url)
            self._asking += 1
            try:
                answer = super().urlopen(request)
            finally:
                self._asking -= 1
            self._answers.add(answer)
            if is_answer(answer.status):
                hosts.answered(urlsplit(url).hostname or "")
            answer.read = functools.partial(_read_bounded, answer.read)
            return answer

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


def only_by_program(info: dict[str, Any], downloader: Any) -> RowFailed | None:
    """Where private addresses are refused: what only a program that connects by itself can get."""
    from yt_dlp.downloader import get_suitable_downloader

    watch = current()
    if watch is None or not watch.refuses_addresses:
        return None
    for one in info.get("requested_formats") or [info]:
        fetcher = get_suitable_downloader(dict(one), downloader.params)
        if fetcher is None or fetcher.__name__ not in _OWN:
            return RowFailed(
                "permanent", f"fetched over {one.get('protocol')} by a program, which can't be "
                "kept from private addresses; download_videos.private_addresses=allow lets it")
    return None
