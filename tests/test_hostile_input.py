"""Strangers' texts, through the main inputs to every output: they are only text."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.run import load
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.prompts import render, variables_of
from tests.download_helpers import make_video
from tests.parsed_html import elements_of
from tests.synthetic import build_dataset

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = (
    "../../escaped",
    "/tmp/escaped-absolutely",
    "..\\..\\escaped",
    "'; DROP TABLE clips; COPY (SELECT 1) TO 'escaped.csv'; --",
    "<script>document.title='hit'</script><img src=x onerror=alert(1)>",
    "\x1b[2J\x1b]0;owned\x07 \x9b31m red",
    "nul\x00inside",
    "\u202egnp.exe\u2066 turned \u2069",
    "half \ud83d a pair",
    "-rf --output=/escaped",
    "$(touch escaped) `touch escaped` | touch escaped",
    "{{ 7*7 }} {% for x in range(9) %}x{% endfor %} %(x)s {0.__class__}",
    "=cmd|' /C calc'!A0",
    "long " * 200_000,
)
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def listing(folder: Path, but: tuple[str, ...] = ()) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in found if not name.startswith(but)} if but else found


def cli(*arguments: object) -> str:
    """What a successful command prints, on both streams."""
    found = CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Path:
    """A dataset from lists in three formats with hostile values everywhere, alone in a folder."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "in").mkdir()
    rows = []
    for number, text in enumerate(HOSTILE):
        name = f"-{number} '\";<b>$(x)\n.mp4"  # a leading dash, quotes, HTML, a line break
        (folder / "in" / name).write_bytes(make_video(seed=number))
        rows.append(
            {
                "path": f"./{name}",
                "video_id": f"{text[:60]}{number}",
                "title": text,
                "category": text[:500],
                "language": text[:80],
                "caption": f"{text} {number}",
                "uploader": text,
                "start_seconds": 0.2,
                "end_seconds": 1.6,
            }
        )
    with open(folder / "in" / "a.csv", "w", newline="", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row for row in rows[:5])
    (folder / "in" / "b.jsonl").write_text("\n".join(map(json.dumps, rows[5:10])))
    clean = [
        {
            key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row in rows[10:]
    ]
    pq.write_table(pa.Table.from_pylist(clean), folder / "in" / "c.parquet")
    (folder / "recipe.yaml").write_text(
        "sources: [in/a.csv, in/b.jsonl, in/c.parquet]\nengine: local\nstages:\n"
        "  download_videos: {min_duration_seconds: null, min_height: null}\n"
        "  split_clips: {boundaries: given, min_clip_seconds: 0}\n"
    )
    before = listing(folder)
    run(load_recipe(folder / "recipe.yaml"), folder / "dataset")
    assert listing(folder, ("dataset",)) == before
    return folder


def test_every_hostile_source_becomes_a_clip_inside_the_dataset(sandbox):
    """Each id is the given text if that is safe as a file name, else a hash of it."""
    with open_catalog(sandbox / "dataset") as catalog:
        rows = catalog.execute(
            "SELECT video_id, clip_id, title, caption_given FROM clips"
        ).fetchall()
        failed = catalog.execute("SELECT kind, message FROM failures").fetchall()
    assert failed == []
    assert len(rows) == len(HOSTILE)
    for video, clip, title, caption in rows:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", video)
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", clip)
        assert title
        assert caption
    titles = {title for _, _, title, _ in rows}
    assert HOSTILE[3] in titles
    assert HOSTILE[-1].strip() in titles


@pytest.mark.parametrize("format_", ["table", "csv", "json", "jsonl", "parquet"])
def test_sql_returns_texts_and_writes_only_the_output(sandbox, format_):
    before = listing(sandbox)
    output = sandbox / f"rows.{format_}"
    cli(
        "sql",
        sandbox / "dataset",
        "SELECT clip_id, title FROM clips ORDER BY clip_id",
        "--format",
        format_,
        "--output",
        output,
    )
    assert listing(sandbox) == before | {output.name}
    if format_ == "jsonl":
        titles = {json.loads(line)["title"] for line in output.read_text().split("\n") if line}
        assert HOSTILE[4] in titles
        assert len(titles) == len(HOSTILE)
    output.unlink()


def on_terminal(*arguments: object) -> str:
    """What a command prints on a terminal."""
    reading, writing = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "clipmill.jobs.cli", *map(str, arguments)],
        cwd=ROOT,
        stdout=writing,
        stderr=writing,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "100"},
    ) as process:
        os.close(writing)
        shown = b""
        while True:
            try:
                part = os.read(reading, 65536)
            except OSError:
                break
            shown += part
            if not part:
                break
        process.wait(60)
    os.close(reading)
    return shown.decode("utf-8").replace("\r\n", "\n")


def test_output_cannot_control_a_terminal(sandbox):
    """In every format, control characters, bidi marks and half surrogates become spaces."""
    query = "SELECT left(title, 80) AS t, left(category, 40) AS c FROM clips"
    for format_ in ("table", "csv", "jsonl"):
        shown = on_terminal("sql", sandbox / "dataset", query, "--format", format_)
        assert "owned" in shown
        assert not STEERING.search(shown), format_
    wrong = on_terminal("sql", sandbox / "dataset", "SELECT '\x1b[2J\u202e' || nope FROM clips")
    assert "nope" in wrong
    assert not STEERING.search(wrong)


def test_status_failures_and_subsets_show_texts_literally(sandbox):
    before = listing(sandbox)
    dataset = sandbox / "dataset"
    recipe = sandbox / "in" / "subset.yaml"
    recipe.write_text(
        'description: "<script>x</script> \\e[2J"\nrules:\n'
        "  - where: duration_seconds > 0\n"
        '    name: "</td>\\e[2J $(touch escaped)"\n'
    )
    said = [
        cli("status", dataset),
        cli("failures", dataset),
        cli("runs", dataset),
        cli("subset", "explain", dataset, recipe),
        cli("subset", "create", dataset, recipe, "--name", "plain"),
        cli("subset", "show", dataset, "plain"),
    ]
    assert not [text for text in said if STEERING.search(text)]
    for name in ("../escaped", "/tmp/escaped", "a/b", ".hidden", "-rf", "x\x00y", "a" * 200, ""):
        with pytest.raises(UsageError, match="--name"):
            cli("subset", "create", dataset, recipe, f"--name={name}")
        with pytest.raises(UsageError):
            cli("subset", "show", dataset, "--", name)
    recipe.unlink()
    made = listing(sandbox, ("dataset/subsets/plain", "dataset/subsets/.plain.lock")) - before
    assert made <= {"dataset/subsets"}


@pytest.mark.parametrize("format_", ["parquet", "csv", "webdataset", "huggingface", "interleaved"])
def test_exports_have_the_texts_and_only_safe_names(sandbox, format_):
    before = listing(sandbox)
    output = sandbox / "out" / format_
    media = "copy" if format_ in ("webdataset", "huggingface") else "none"
    output.parent.mkdir(exist_ok=True)
    cli(
        "export",
        sandbox / "dataset",
        "--output",
        output,
        "--format",
        format_,
        "--media",
        media,
        "--caption",
        "caption_given",
        "--engine",
        "local",
    )
    assert {name for name in listing(sandbox) - before if not name.startswith("out")} == set()
    for path in output.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)
        assert not path.is_symlink()
    members = []
    for path in output.rglob("*.tar"):
        with tarfile.open(path) as tar:
            members += tar.getmembers()
    assert bool(members) == (format_ == "webdataset")
    for member in members:
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.(mp4|webm|mkv|txt|json)", member.name)
        assert member.isfile()
    if format_ == "csv":
        text = "".join(path.read_text("utf-8") for path in output.rglob("*.csv"))
        csv.field_size_limit(2**31 - 1)
        rows = list(csv.DictReader(io.StringIO(text)))
        for name in ("title", "category", "language", "text", "caption_given"):
            values = [row[name] for row in rows if name in row]
            assert not [value for value in values if value.startswith(("=", "+", "@"))]
            assert not [value for value in values if STEERING.search(value)], name
    for card in output.glob("README.md"):
        assert "<script" not in card.read_text("utf-8")


def test_report_has_no_element_from_a_text(sandbox):
    cli("report", sandbox / "dataset", "--output", sandbox / "page.html")
    page = (sandbox / "page.html").read_text("utf-8")
    elements = elements_of(page)
    assert not [
        tag
        for tag, attributes in elements
        if tag == "script" or any(name.startswith("on") for name in attributes)
    ]
    assert "&lt;script&gt;" in page
    (sandbox / "page.html").unlink()


# --- SQL ---


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("small") / "dataset").path


@pytest.fixture(scope="module")
def catalog(small) -> Iterator[Catalog]:
    with open_catalog(small) as opened:
        yield opened


COPY = "WITH x AS (CO' || 'PY (SELECT 1 AS a) TO ''{inside}/evil.parquet'') FROM x"
SQL = [
    f"FROM json_execute_serialized_sql(json_serialize_sql('{COPY}'))",
    f"FROM system.main.json_execute_serialized_sql(json_serialize_sql('{COPY}'))",
    f"SELECT (SELECT count(*) FROM json_execute_serialized_sql(json_serialize_sql('{COPY}')))",
    f"EXPLAIN ANALYZE FROM json_execute_serialized_sql(json_serialize_sql('{COPY}'))",
    f"SUMMARIZE FROM json_execute_serialized_sql(json_serialize_sql('{COPY}'))",
    f"PIVOT (FROM json_execute_serialized_sql(json_serialize_sql('{COPY}'))) ON Count",
    f"PIVOT (FROM \"Json_Execute_Serialized_Sql\" /**/ (json_serialize_sql('{COPY}'))) ON Count",
    f"FROM query('{COPY}')",
    "FROM query_table('/etc/passwd')",
    "SELECT getenv('HOME')",
    "FROM '/etc/passwd'",
    "FROM read_blob('/etc/passwd')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM parquet_metadata('/etc/passwd')",
    "FROM read_csv('/dev/stdin')",
    "FROM glob('/etc/*')",
    "FROM read_text('file:///etc/passwd')",
    "FROM 's3://bucket/x.parquet'",
    "FROM 'http://127.0.0.1:9/x.csv'",
    "EXPORT DATABASE '{inside}'",
    "IMPORT DATABASE '{inside}'",
    "ATTACH '{inside}/x.db'",
    "COPY clips TO '{inside}/evil.parquet'",
    "CREATE TABLE x AS FROM clips",
    "LOAD httpfs",
    "INSTALL httpfs",
    "SET memory_limit = '1TB'",
    "RESET memory_limit",
    "PRAGMA version",
    "CALL enable_logging()",
    "FROM enable_logging()",
    "PREPARE x AS SELECT 1",
    "USE internal",
    "FROM register_external_resource_type('a', kind = 'b', create_function = 'c')",
    *(
        f"PIVOT (FROM json_execute_serialized_sql{space}(json_serialize_sql('{COPY}'))) ON Count"
        for space in (" -- \r ", "\u200b", "\u2060", "\ufeff", "/* /* */ */", "\x0b", "\x0c")
    ),
    f"PIVOT (FROM\u200bquery\u200b('{COPY}')) ON Count",
    f"EXPLAIN ANALYZE PIVOT (FROM query\u200b('{COPY}')) ON Count",
    "WITH x AS (\u200bCOPY (SELECT 1) TO '{inside}/evil.parquet') PIVOT x ON Count",
    "-- a\rEXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/evil.parquet' /*\nEXPLAIN SELECT 1 -- */",
    "/* /* */ EXPLAIN SELECT 1 -- */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/evil.parquet'",
    "EXPLAIN ANALYZE -- a\rCOPY (SELECT 1) TO '{inside}/evil.parquet' --\nSELECT 1",
    "\ufeffEXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/evil.parquet'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{inside}/evil.parquet') FROM x",
    "WITH x AS (TRUNCATE clips) FROM x",
]


@pytest.mark.parametrize("query", SQL)
def test_sql_cannot_write_or_read_elsewhere(small, catalog, query):
    inside = small / "split_clips" / "c1"
    before = listing(small)
    with pytest.raises(UsageError):
        catalog.ask(query.format(inside=inside)).read_all()
    assert listing(small) == before


@pytest.mark.parametrize("query", SQL[:9])
def test_subset_rules_cannot_write_or_read_elsewhere(small, tmp_path, query):
    inside = small / "split_clips" / "c1"
    query = query.format(inside=inside).removeprefix("EXPLAIN ANALYZE ").replace("SUMMARIZE ", "")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"rules": [{"where": f"(SELECT count(*) FROM ({query})) > 0"}]}))
    before = listing(small)
    with pytest.raises(UsageError):
        cli("subset", "explain", small, recipe)
    assert listing(small) == before


BOMBS = [
    "SELECT repeat('x', 4000000000)",
    "SELECT [x || repeat('y', 10000000) FOR x IN range(1000)::VARCHAR[]]",
    "SELECT list(a.range) FROM range(100000) a, range(100000) b",
    "SELECT range(2000000000)",
    "SELECT string_agg(repeat('x', 1000000)) FROM range(5000)",
    "WITH RECURSIVE t AS (SELECT 'xx' AS s UNION ALL SELECT s || s FROM t) FROM t",
]


@pytest.mark.parametrize("query", BOMBS)
def test_query_that_exceeds_memory_is_a_clear_error(small, query, tmp_path):
    """DuckDB's own limit does not count texts made by functions; the process's limit does."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ClipmillError, match="--memory-limit"):
        cli(
            "sql",
            small,
            query,
            "--memory-limit",
            "200MB",
            "--format",
            "csv",
            "--output",
            tmp_path / "x.csv",
        )
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert cli("sql", small, "SELECT count(*) AS n FROM clips", "--memory-limit", "200MB")


def test_lack_of_memory_that_duckdb_reports_as_internal_is_a_clear_error():
    """It does so where none is left to format the error itself, which no test can provoke."""
    said = (
        "INTERNAL Error: Primary exception: (%s %s %s)\n"
        "Secondary exception in ExceptionFormatValue: std::bad_alloc"
    )
    with pytest.raises(ClipmillError, match="--memory-limit"), readable_errors():
        raise duckdb.InternalException(said)


def test_rules_have_the_memory_limit(small, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rules:\n  - where: length(printf('%2000000000d', width)) > 5\n")
    with pytest.raises(ClipmillError, match="--memory-limit"):
        cli("subset", "explain", small, recipe, "--memory-limit", "200MB")


def test_invalid_memory_limit_is_reported(small):
    with pytest.raises(UsageError, match="--memory-limit lots"):
        cli("sql", small, "SELECT 1", "--memory-limit", "lots")


FOR_EVER = [
    "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 8",
    "WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x FROM t) SELECT count(x) FROM t",
    "SELECT sleep_ms(60000)",
]


@pytest.mark.slow
def test_ctrl_c_ends_endless_queries(small, tmp_path):
    """Including those during which DuckDB never checks for interrupts."""
    # Even if the tests run in a shell's background, which ignores Ctrl-C.
    heeding = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('clipmill.jobs.cli', run_name='__main__')"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", heeding, "sql", str(small), query],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            text=True,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for query in FOR_EVER
    ]
    try:
        # Each has opened the catalog once its folder exists.
        while len(list(tmp_path.glob("clipmill-sql-*"))) < len(FOR_EVER):
            assert all(process.poll() is None for process in running)
            time.sleep(0.1)
        time.sleep(1)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            assert "Stopped." in process.communicate(timeout=30)[1]
            assert process.returncode == 130
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'infinity'::TIMESTAMP",
        "SELECT '200000-01-01'::DATE",
        "FROM test_all_types()",
        "CONNECT 'x'",
        "SELECT 'x'::POINTER",
        "FROM arrow_scan(1, 2, 3)",
        "FROM pandas_scan(1)",
        "FROM enable_profiling(save_location='x')",
        "FROM duckdb_extensions()",
    ],
)
def test_unsupported_queries_and_results_are_reported(small, query):
    with pytest.raises(UsageError):
        cli("sql", small, query, "--format", "jsonl")


# --- recipes ---


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch escaped']",
        "!!python/name:os.system",
        "dataset: !!python/object/new:os.system ['touch escaped']",
        "stages: {caption_frames: {prompt: !!python/object/apply:os.getcwd []}}",
        "stages: {caption_frames: {model: !include /etc/passwd}}",
    ],
)
def test_recipe_is_plain_data(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    for read in (
        lambda: load(str(recipe), tmp_path / "dataset"),
        lambda: cli("subset", "explain", tmp_path, recipe),
    ):
        with pytest.raises(UsageError):
            read()
    assert listing(tmp_path) == {"recipe.yaml"}


def test_recipe_with_exponential_aliases_is_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join([*lines, "sources: *a9", "stages: {split_clips: *a9}"]))
    started = time.monotonic()
    for read in (
        lambda: load(str(recipe), tmp_path / "dataset"),
        lambda: cli("subset", "explain", tmp_path, recipe),
    ):
        with pytest.raises(UsageError):
            read()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "template",
    [
        "{{ fine.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch escaped') }}",
        "{{ ''.__class__ }}",
        "{{ fine|attr('__class__') }}",
        "{{ '{0.__class__}'.format(fine) }}",
        "{{ fine.append(1) }}",
        "{{ fine.clear() }}",
        "{{ lipsum.__globals__ }}",
        "{% for x in range(999999999) %}{% endfor %}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x'|center(100000000000) }}",
        "{{ '%100000000000d'|format(1) }}",
        "{% set x = 'x' * 1000 %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
    ],
)
def test_prompt_template_is_sandboxed_and_bounded(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    try:
        variables_of(template, ("fine",))
        said = render(template, {"fine": ["a"]})
    except ValueError:
        said = ""
    assert "class" not in said
    assert time.monotonic() - started < 30
    assert listing(tmp_path) == set()


def test_too_deeply_nested_template_is_refused():
    with pytest.raises(ValueError, match=r"nested|template"):
        variables_of("{{ " + "(" * 100_000 + "fine" + ")" * 100_000 + " }}", ("fine",))


# --- weights ---


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("what", ["aesthetic head", "open_clip", "x-clip", "viclip"])
def test_pickle_among_the_weights_does_not_run(what, tmp_path):
    import torch

    from clipmill.stages.models.aesthetic_heads import load_head
    from clipmill.stages.models.embedders import ClipEmbedder
    from clipmill.stages.models.video_text.choose import load_video_text_model
    from clipmill.stages.references import ModelReference
    from tests.tiny_clip import save_tiny_clip

    ran = tmp_path / "ran"
    folder = save_tiny_clip(tmp_path / "model")
    weights = {
        "aesthetic head": "head.pth",
        "open_clip": "open_clip_pytorch_model.bin",
        "x-clip": "pytorch_model.bin",
        "viclip": "ViCLIP.pth",
    }[what]
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"weight": torch.ones(1, 2), "bias": Planted(ran)}, folder / weights)
    if what == "x-clip":
        (folder / "config.json").write_text('{"model_type": "xclip"}')
    reference = ModelReference(folder=str(folder))
    read = {
        "aesthetic head": lambda: load_head(folder / weights),
        "open_clip": lambda: ClipEmbedder(reference, setting="embed_clips.model"),
        "x-clip": lambda: load_video_text_model(reference, setting="score_video_similarity.model"),
        "viclip": lambda: load_video_text_model(reference, setting="score_video_similarity.model"),
    }[what]
    with pytest.raises(ClipmillError):
        read()
    assert not ran.exists()
    # It would have: loaded carelessly, the file does harm.
    torch.load(folder / weights, weights_only=False)
    assert ran.exists()


# --- processes ---


def test_programs_are_started_with_lists_of_arguments():
    """There are few, and none gets anything from outside."""
    shells = re.compile(r"os\.(system|popen|exec\w*|spawn\w*)|\w*\.?getoutput")

    def uses_shell(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and (
            bool(shells.fullmatch(ast.unparse(node.func)))
            or any(word.arg == "shell" for word in node.keywords)
        )

    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for package in ("clipmill", "jobs", "pipeline", "stages", "schemas")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if uses_shell(node)
    ]
    # This program itself, restarted with its own arguments as a list.
    assert found == [
        "jobs/encoding.py: os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], "
        "{**os.environ, 'PYTHONUTF8': '1'})"
    ]
