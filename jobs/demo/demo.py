"""`clipmill demo`: runs the full pipeline on a small rendered world and measures the result."""

from __future__ import annotations

import contextlib
import functools
import http.server
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from clipmill.jobs.demo.measure import Figure, measure
from clipmill.jobs.demo.render import render_film, write_duplicate, write_html_page, write_truncated
from clipmill.jobs.demo.world import Film, load_truth, make_world, save_truth
from clipmill.jobs.run import run
from clipmill.jobs.status import print_status
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import LoadedRecipe, load_recipe
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError

SEED = 2026
FILMS = 24
# Ports that systems don't assign to outgoing connections, so they are free the next time.
_QUIET_PORTS = range(20_000, 30_000)

# Each broken source's defect, and its expected outcome.
BROKEN = {
    "missing.mp4": "permanent",
    "truncated.mp4": "bad_media",
    "page.mp4": "bad_media",
    "too_short.mp4": "download_videos.min_duration_seconds",
    "again.mp4": "download_videos.duplicate",
}

QUERIES = (
    "SELECT caption, count(*) AS clips, round(avg(similarity), 3) AS similarity "
    "FROM clips GROUP BY caption ORDER BY clips DESC LIMIT 5",
    "SELECT clip_id, caption, motion FROM clips WHERE motion < 1 ORDER BY motion LIMIT 5",
    "SELECT clip_id, seconds, text FROM (SELECT clip_id, unnest(captions_fine, recursive := true) "
    "FROM clips) LIMIT 8",
)

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False)


def run_demo(dataset: Path, *, engine: str) -> None:
    """Renders the world once, runs the recipe, prints what was measured.

    Raises ClipmillError if a figure misses its target.
    """
    world = dataset / "world"
    films = _render(world)
    server = _server(world)
    try:
        listing = _listing(world, films, server)
        loaded = load_recipe(recipe_path("demo"), sources=[str(listing)], engine=engine)
        _run(loaded, dataset, server)
    finally:
        server.server_close()
    print_status(dataset)
    sys.stdout.flush()
    figures = measure(dataset, films, BROKEN)
    _print(dataset, figures)
    if missed := [figure.name for figure in figures if not figure.reached]:
        raise ClipmillError(
            f"the demo missed its targets: {', '.join(missed)}; "
            f"`clipmill failures {shell_word(dataset)}` may say why"
        )


def _render(world: Path) -> list[Film]:
    truth = world / "truth.json"
    if truth.exists():
        return load_truth(truth)
    served = world / "served"
    served.mkdir(parents=True, exist_ok=True)
    films = make_world(SEED, FILMS)
    for number, film in enumerate(films, 1):
        if _err.is_terminal:
            _err.print(f"Rendering film {number} of {FILMS}", end="\r")
        render_film(film, served / f"{film.name}.mp4")
    first = served / f"{films[0].name}.mp4"
    write_truncated(first, served / "truncated.mp4")
    write_html_page(served / "page.mp4")
    write_duplicate(first, served / "again.mp4")
    render_film(Film("too_short", films[1].shots[:1]), served / "too_short.mp4")
    # The truth is written last: it marks the world as complete.
    save_truth(films, truth)
    _err.print(f"Rendered {FILMS} films and {len(BROKEN) - 1} broken files to {served}.")
    return films


class _PageHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass  # a line per request would hide the progress


def _server(world: Path) -> http.server.ThreadingHTTPServer:
    """Serves the world on the port of its first addresses, or on a free one."""
    remembered = world / "port.txt"

    def at(port: int) -> http.server.ThreadingHTTPServer:
        handler = functools.partial(_PageHandler, directory=str(world / "served"))
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)

    if remembered.exists():
        port = int(remembered.read_text("utf-8"))
        try:
            return at(port)
        except OSError as error:
            raise ClipmillError(
                f"the demo's films are listed under port {port}, which "
                f"another program is using now ({error}); stop that program, or "
                "use another folder with --dataset"
            ) from error
    for port in random.sample(_QUIET_PORTS, 20):
        with contextlib.suppress(OSError):
            server = at(port)
            break
    else:
        server = at(0)
    remembered.write_text(str(server.server_address[1]), "utf-8")
    return server


def _listing(world: Path, films: list[Film], server: ThreadingHTTPServer) -> Path:
    port = server.server_address[1]
    names = [f"{film.name}.mp4" for film in films]
    for position, broken in enumerate(BROKEN, 1):
        names.insert(min(len(names), 5 * position), broken)
    # The same bytes twice in one shard, so that always the first one is kept.
    names.remove("again.mp4")
    names.insert(1, "again.mp4")
    listing = world / "films.csv"
    listing.write_text(
        "url,category\n"
        + "".join(f"http://127.0.0.1:{port}/{quote(name)},shapes\n" for name in names),
        "utf-8",
    )
    return listing


@contextlib.contextmanager
def _served(server: http.server.ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def _run(loaded: LoadedRecipe, dataset: Path, server: http.server.ThreadingHTTPServer) -> None:
    with _served(server):
        run(loaded, dataset)


def print_figures(title: str, figures: list[Figure]) -> None:
    """The table of what was measured."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("what", "measured", "target", ""):
        table.add_column(column, justify="right" if column in ("measured", "target") else "left")
    for figure in figures:
        mark = "[green]reached[/green]" if figure.reached else "[red]missed[/red]"
        table.add_row(figure.name, figure.shown, figure.target, mark)
    _out.print(table)


def _print(dataset: Path, figures: list[Figure]) -> None:
    print_figures("Measured against the world's ground truth", figures)
    _out.print(
        "\nThe captioner, summariser, CLIP and aesthetic head of this demo were trained on this "
        "world of\nmoving shapes and know nothing else: on any other video their output is "
        "meaningless. For real\nvideos use the recipes `signals` (measures, no captions), "
        "`small-cpu` or `internvid`.\n\nTry next:"
    )
    for query in QUERIES:
        _out.print(f'  {this_command()} sql {shown_path(dataset)} "{query}"')
    for words in (
        "subset explain {} internvid-div --set clips=40",
        "report {} --output report.html",
    ):
        _out.print(f"  {this_command()} {words.format(shown_path(dataset))}")


def this_command() -> str:
    """How to call this program from here: its environment may not be activated."""
    return "clipmill" if shutil.which("clipmill") else shown_path(Path(sys.argv[0]).absolute())


def shown_path(dataset: Path) -> str:
    """The folder as a user would type it here."""
    try:
        return str(dataset.relative_to(Path.cwd()))
    except ValueError:
        return str(dataset)
