"""Changes yt-dlp's process for a test: it is another process, so monkeypatch doesn't reach it."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipmill.stages.media.isolation import isolated

Put = Callable[[Any, str, Any], None]


def change_ytdlp_process(change: Callable[[Put], object], put: Put = setattr) -> None:
    """Has `change(put)` done in yt-dlp's process for each call from now on, and undone after it.

    `put` is monkeypatch.setattr in a test. The change, and what it refers to, is sent as it is
    at the time of the call, so a test may alter it meanwhile; what it does there stays there.
    """
    run = isolated.run_fetching

    def run_changed(function: Callable[..., Any], url: str, /, *args: Any, **named: Any) -> Any:
        return run(_call_changed, url, _cloudpickle().dumps(change), function, *args, **named)

    put(isolated, "run_fetching", run_changed)


def _call_changed(packed: bytes, function: Callable[..., Any], *args: Any) -> Any:
    """In yt-dlp's process."""
    changed: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        _cloudpickle().loads(packed)(put)
        return function(*args)
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)


_LOADING = threading.Lock()


def _cloudpickle() -> Any:
    """Ray's cloudpickle, without Ray: it takes seconds to import."""
    name = "rays_cloudpickle"  # not that of the package, which may be installed, too
    with _LOADING:  # downloads call this from several threads
        if name not in sys.modules:
            ray = importlib.util.find_spec("ray")
            assert ray is not None
            assert ray.submodule_search_locations
            file = Path(ray.submodule_search_locations[0]) / "cloudpickle" / "cloudpickle.py"
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[name]
