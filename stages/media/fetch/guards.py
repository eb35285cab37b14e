"""Applies the download settings to all network requests, including those for lists."""

from __future__ import annotations

from pathlib import Path

from clipmill.schemas.folders import MEDIA_HOSTS
from clipmill.stages.media.fetch.addresses import proxy_addresses
from clipmill.stages.media.fetch.host_throttle import Hosts, Manners, ask_again
from clipmill.stages.media.fetch.settings import DownloadSettings
from clipmill.stages.media.fetch.watch import DownloadLimits


def hosts_of(settings: DownloadSettings, dataset: Path) -> Hosts:
    """Request spacing at hosts, shared by all workers of a dataset."""
    return Hosts(
        Manners(
            settings.sleep_seconds,
            settings.host_problems,
            settings.host_pause_seconds,
            settings.max_backoff_seconds,
            settings.host_gone_seconds,
        ),
        _folder(dataset),
    )


def ask_hosts_again(dataset: Path) -> None:
    """Lets a new run contact every host again, whatever happened in an earlier run."""
    if _folder(dataset).is_dir():
        ask_again(_folder(dataset))


def _folder(dataset: Path) -> Path:
    return dataset / MEDIA_HOSTS


def limits_of(settings: DownloadSettings, proxy: str | None) -> DownloadLimits:
    """The limits for the download of one video or one list."""
    least, most = settings.min_bytes_per_second, settings.rate_limit_bytes_per_second
    if least is not None and most is not None:
        least = min(least, most // 2)  # our own rate limit must not count as slowness
    return DownloadLimits(
        settings.max_bytes,
        least,
        settings.min_speed_seconds,
        settings.max_download_seconds,
        proxy_addresses(proxy) if settings.private_addresses == "refuse" else None,
    )
