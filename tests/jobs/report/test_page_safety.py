"""What a dataset's texts can't do to the page, and what readers can rely on."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clipmill.jobs.report.page import write_report
from clipmill.jobs.report.sample_clips import source_of
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from tests.jobs.report.parsed_page import Element, parse
from tests.scored_catalog import Clip, build, own

_MARK = "document.documentElement.setAttribute('data-hit','1')"
HOSTILE = (
    f"<script>{_MARK}</script>",
    f'"><img src=x onerror="{_MARK}">',
    f"'><svg onload={_MARK}>",
    f"</title><script>{_MARK}</script>",
    f"</style><script>{_MARK}</script>",
    f"javascript:{_MARK}",
    f"{{{{ 7*7 }}}}<b>&lt;i&gt;&#60;script&#62;{_MARK}&#60;/script&#62;",
    f'--><iframe srcdoc="<script>{_MARK}</script>"></iframe><!--',
)
_TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "nav",
    "section",
    "article",
    "h1",
    "h2",
    "h3",
    "p",
    "a",
    "dl",
    "dt",
    "dd",
    "div",
    "span",
    "b",
    "br",
    "ol",
    "ul",
    "li",
    "time",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "figcaption",
    "details",
    "summary",
    "code",
    "pre",
    "img",
    "svg",
    "desc",
    "g",
    "rect",
    "line",
    "path",
    "polyline",
    "text",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a subset of a dataset all of whose texts attack the page."""
    folder = tmp_path_factory.mktemp("hostile")
    label = f"own<script>{_MARK}<!--"
    clips = [
        Clip(f"generic-v{n}", 0.0, 1.0 + n, caption=f"{text} {n}", values={label: float(n)})
        for n, text in enumerate(HOSTILE)
    ]
    videos = {
        f"generic-v{n}": {"title": text, "url": text, "category": text, "language": text}
        for n, text in enumerate(HOSTILE)
    }
    dataset = build(folder / 'd"><script>x<!--', clips, [own(label)], videos=videos)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "description: <script>x</script>\nsource: <img src=x onerror=x>\nrules:\n"
        "  - name: </td><script>x</script>\n    where: duration_seconds > 1.5\n"
    )
    with open_catalog(dataset) as catalog:
        create_subset(catalog, load_subset_recipe(recipe), name="s", code_version="<script>x")
    write_report(dataset, folder / "page.html", subset="s", sample_count=60)
    return folder / "page.html"


@pytest.fixture(scope="module")
def root(page: Path) -> Element:
    return parse(page)


def test_hostile_texts_are_shown_as_text(root):
    """Only the template's own elements, attributes and links, and every caption is readable."""
    elements = root.all()
    assert {element.tag for element in elements} <= _TAGS
    for element in elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        assert "style" not in element.attributes
    links = {element.attributes["href"] for element in root.all("a")}
    assert all(re.match(r"#[a-z]+\Z|https://", link or "") for link in links), links
    captions = {element.text for element in root.all("p", class_="caption")}
    assert {f"{' '.join(text.split())} {n}" for n, text in enumerate(HOSTILE)} <= captions


def test_page_loads_nothing(root):
    policy = root.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    style = "".join(map(str, root.one("style").children))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert all(
        (image.attributes["src"] or "").startswith("data:image/jpeg;base64,")
        for image in root.all("img")
    )
    assert "url(" not in style
    assert "@import" not in style


def in_chromium(page: Path, profile: Path) -> str:
    """Chromium's parse of a page."""
    return subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--dump-dom",
            page.as_uri(),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="looks at the page in Chromium")
def test_browser_runs_no_script_of_the_page(page, tmp_path):
    """With the policy removed, so that only escaping protects it."""
    plain, bare = tmp_path / "plain.html", tmp_path / "bare.html"
    plain.write_text(f"<p>a page</p><script>{_MARK}</script>")
    try:
        shown = in_chromium(plain, tmp_path / "first")
    except (OSError, subprocess.SubprocessError):
        shown = ""
    if "data-hit" not in shown.partition("<head>")[0] or "a page" not in shown:
        pytest.skip("Chromium does not show a plain page here")
    text = page.read_text(encoding="utf-8")
    bare.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text), encoding="utf-8")
    dumped = ""
    for number in range(3):  # a browser may fail to start sometimes
        with contextlib.suppress(subprocess.SubprocessError):
            dumped = in_chromium(bare, tmp_path / f"profile{number}")
            break
    assert "Clipmill report" in dumped
    assert "data-hit" not in dumped.partition("<head>")[0]


@pytest.mark.parametrize(
    ("url", "link", "place"),
    [
        ("https://user:word@site.example/v?id=1", "https://site.example/v?id=1", None),
        ("JavaScript:alert(1)", None, "JavaScript:alert(1)"),
        (" javascript:alert(1)", None, "javascript:alert(1)"),
        ("data:text/html,x", None, "data:text/html,x"),
        ("//site.example/v", None, "v"),
        ("/home/someone/films/a b.mp4", None, "a b.mp4"),
        ("file:///home/someone/a.mp4", None, "a.mp4"),
        ("http://[broken", None, "http://[broken"),
        ("https://", None, "https://"),
        (None, None, None),
    ],
)
def test_only_http_urls_become_links_and_local_folders_are_not_shown(url, link, place):
    assert source_of(url) == (link, place)


def test_page_is_accessible_to_screen_readers(root):
    """A language, one h1, no skipped heading levels, and alternative text for every picture."""
    assert root.one("html").attributes["lang"] == "en"
    levels = [int(one.tag[1]) for one in root.all() if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next_ <= level + 1 for level, next_ in itertools.pairwise(levels))
    ids = [one.attributes["id"] for one in root.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for drawing in root.all("svg", class_="chart"):
        assert drawing.attributes["role"] == "img"
        named = (drawing.attributes["aria-labelledby"] or "").split()
        assert [drawing.one(id=name).tag for name in named] == ["title", "desc"]
        assert all(drawing.one(id=name).text for name in named)
    for drawing in root.all("svg"):
        hidden = drawing.attributes.get("aria-hidden") or (
            drawing.parent
            and drawing.parent.parent
            and drawing.parent.parent.attributes.get("aria-hidden")
        )
        assert hidden == "true" or drawing.attributes.get("role") == "img"
    assert all(image.attributes["alt"] for image in root.all("img"))
    assert all(one.attributes.get("scope") in ("row", "col") for one in root.all("th"))
