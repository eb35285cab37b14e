"""`clipmill report`: what the page counts, shows and refuses."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipmill.jobs.report.numbers import number, percent
from clipmill.jobs.report.page import write_report
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.status import status_report
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import UsageError
from clipmill.stages.scan_videos import FRAMES
from tests.jobs.report.parsed_page import Element, numbers, parse, stage_rows
from tests.scored_catalog import Clip, aesthetic, build, given, own, random_clips, similarity
from tests.synthetic import STEPS, build_dataset, write_shard

SCORES = {"similarity": (0.1, 0.5), "aesthetic": (3.0, 7.0)}


def report(dataset: Path, output: Path, **wanted) -> Element:
    write_report(dataset, output, **wanted)
    return parse(output)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 300 clips with two scores, one in nine of them missing."""
    dataset = tmp_path_factory.mktemp("scored") / "dataset"
    return build(dataset, random_clips(300, SCORES), [similarity(), aesthetic()])


def card_id(root: Element, title: str) -> str:
    (found,) = [card for card in root.all("figure") if card.one("h3").text == title]
    return found.attributes["id"] or ""


def freeze(dataset: Path, recipe: str, folder: Path, name: str = "chosen") -> None:
    path = folder / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    with open_catalog(dataset) as catalog:
        create_subset(catalog, load_subset_recipe(path), name=name, code_version="0")


def ask(dataset: Path, query: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(query).fetchall()


def test_histogram_bins_agree_with_sql(scored, tmp_path):
    root = report(scored, tmp_path / "page.html")
    for column, title in (
        ("similarity", "similarity"),
        ("aesthetic", "aesthetic"),
        ("duration_seconds", "Clip durations"),
    ):
        card = card_id(root, title)
        bins = numbers(root, card)
        edges = [label.split(" to ") for label in bins]
        counts = ", ".join(
            f"count(*) FILTER ({column} >= {low} AND {column} < {high})" for low, high in edges
        )
        ((total, *expected),) = ask(scored, f"SELECT count({column}), {counts} FROM clips")
        assert [int(count) for count, _ in bins.values()] == expected
        assert sum(expected) == total
        drawn = root.one("figure", id=card).all("svg")[0].all("rect", class_="data")
        assert [bar.one("title").text.split(": ")[1].split()[0] for bar in drawn] == [
            count for count, _ in bins.values()
        ]


def test_value_on_a_bins_edge_counts_in_the_bin_that_begins_there(tmp_path):
    clips = [Clip("generic-v0", n, n + 1, values={"aesthetic": n / 10}) for n in range(31)]
    root = report(build(tmp_path / "d", clips, [aesthetic()]), tmp_path / "page.html")
    bins = numbers(root, card_id(root, "aesthetic"))
    assert [count for count, _ in bins.values()] == ["1"] * 31
    assert list(bins)[7] == "0.7 to 0.8"


def test_outliers_are_counted_without_stretching_the_axis(tmp_path):
    values = [n / 100 for n in range(1000)] + [1e6]
    clips = [
        Clip("generic-v0", n, n + 1, values={"aesthetic": value}) for n, value in enumerate(values)
    ]
    root = report(build(tmp_path / "d", clips, [aesthetic()]), tmp_path / "page.html")
    bins = numbers(root, card_id(root, "aesthetic"))
    assert list(bins)[-1] == "10.0 or more"
    assert bins["10.0 or more"][0] == "1"
    assert sum(int(count) for count, _ in bins.values()) == 1001


def test_the_papers_bins_include_their_upper_ends(tmp_path):
    clips = [
        Clip("generic-v0", 100.0 * n, 100.0 * n + seconds)
        for n, seconds in enumerate([1.0, 2.0, 4.0, 10.0, 10.5, 31.0])
    ]
    root = report(build(tmp_path / "d", clips, []), tmp_path / "page.html")
    assert numbers(root, "clip-durations", table=1) == {
        "0–2 s": ["1", "17%", ""],
        "2–4 s": ["1", "17%", ""],
        "4–10 s": ["1", "17%", ""],
        "10–20 s": ["2", "33%", ""],
        "20–30 s": ["0", "0%", ""],
        "30 s or more": ["1", "17%", ""],
        "≤ 10 s": ["4", "67%", "85%"],
        "> 10 s": ["2", "33%", "15%"],
    }


def test_score_is_compared_with_internvid_only_for_the_same_scorer(tmp_path):
    clips = random_clips(40, {"umt": (0.2, 0.5), "similarity": (0.2, 0.5), "aesthetic": (3, 7)})
    dataset = build(
        tmp_path / "d",
        clips,
        [similarity(), aesthetic(over="mean"), given("umt", "UMT-SIM", "UMT_Score", "umt")],
    )
    root = report(dataset, tmp_path / "page.html")
    published = {
        card.one("h3").text: "> 80%" in card.text
        for card in root.one("section", id="distributions").all("figure")
    }
    assert published["umt"]
    assert not published["similarity"]
    about = root.one("section", id="distributions").all("p", class_="about")[0].text
    assert "aesthetic (LAION's aesthetic predictor" in about
    assert "similarity (UMT-SIM" not in about


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Element]:
    """A dataset with outcomes of every kind, and its page."""
    folder = tmp_path_factory.mktemp("finished")
    build_dataset(folder / "a b", shards=3, videos=14)
    return folder / "a b", report(folder / "a b", folder / "page.html")


def test_funnel_equals_the_status(finished):
    dataset, root = finished
    status = status_report(dataset)
    names = ("inputs", "kept", "rejected", "failed", "skipped", "pending")
    assert stage_rows(root) == {
        "ingest": [*(status["ingest"][name] for name in names[:5]), 0],
        **{stage["stage"]: [stage[name] for name in names] for stage in status["stages"]},
    }
    drawn = {
        body.one("th").text.split()[0]: body.all("tr", class_="bar")[0].all("rect")
        for body in root.all("table", class_="funnel")[0].all("tbody")
    }
    widest = status["ingest"]["inputs"]
    for stage in status["stages"][:2]:  # both have the same unit as the sources
        at = 0.0
        parts = [(name, stage[name]) for name in names[1:] if stage[name]]
        assert [bar.attributes["class"] for bar in drawn[stage["stage"]]] == [n for n, _ in parts]
        for bar, (_, count) in zip(drawn[stage["stage"]], parts, strict=True):
            assert float(bar.attributes["x"]) == pytest.approx(at, abs=0.01)
            assert float(bar.attributes["width"]) == pytest.approx(100 * count / widest, abs=0.01)
            at += 100 * count / widest
    rejected = {
        row.one("th").text: int(row.all("td")[0].text)
        for row in root.all("table", class_="reasons")[0].one("tbody").all("tr")
    }
    assert rejected == {
        rule if rule.startswith(stage) else f"{stage}: {rule}": count
        for stage, rule, count in ask(
            dataset, "SELECT stage, rule, count(*) FROM rejections GROUP BY ALL"
        )
    }


def test_equal_failures_are_one_line_with_the_command_to_retry(finished):
    dataset, root = finished
    section = root.one("section", id="failures")
    found = {tuple(cell.text for cell in row.all()[:3]) for row in section.one("tbody").all("tr")}
    expected = ask(dataset, "SELECT stage, kind, count(*) FROM failures GROUP BY ALL")
    assert found == {(stage, kind, str(count)) for stage, kind, count in expected}
    commands = [code.text for code in section.all("code")]
    assert commands[-1] == f"clipmill retry '{dataset}'"


RECIPE = """
description: Chosen for a test
rules:
  - name: long
    where: "duration_seconds >= 5 AND aesthetic BETWEEN 4 AND 6"
  - percentile: {column: similarity, top: 50}
"""


def test_subset_is_compared_with_the_catalog_with_rules_and_thresholds(scored, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(scored, dataset)
    freeze(dataset, RECIPE, tmp_path)
    root = report(dataset, tmp_path / "page.html", subset="chosen", sample_count=60)
    chosen = "clip_id IN (SELECT clip_id FROM subset_clips WHERE name = 'chosen')"
    bins = numbers(root, card_id(root, "similarity"))
    edges = [label.split(" to ") for label in bins]
    counts = ", ".join(
        f"count(*) FILTER ({chosen} AND similarity >= {low} AND similarity < {high})"
        for low, high in edges
    )
    ((total, *expected),) = ask(dataset, f"SELECT count(similarity), {counts} FROM clips")
    assert [int(count) for count, _, _ in bins.values()] == expected
    assert sum(int(whole) for _, _, whole in bins.values()) == total
    rules = root.one("section", id="funnel").one("table", class_="rules").all("tbody")
    assert rules[0].all("td", class_="n")[0].text == "300"
    ((n,),) = ask(dataset, "SELECT n_clips FROM subsets")
    assert rules[-1].all("td", class_="n")[0].text == str(n)
    assert root.one("figure", id=card_id(root, "aesthetic")).all("text", class_="threshold-text")
    headings = [heading.text for heading in root.one("section", id="samples").all("h3")]
    assert headings[0] == "At random"
    assert headings[1:4] == ["duration_seconds ≥ 5", "aesthetic ≥ 4", "aesthetic ≤ 6"]
    assert headings[4].startswith("similarity ≥ ")


def test_samples_at_a_threshold_are_the_nearest_on_both_sides(scored, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(scored, dataset)
    freeze(dataset, "rules:\n  - where: aesthetic >= 5\n", tmp_path)
    root = report(dataset, tmp_path / "page.html", subset="chosen", sample_count=16)
    shown = root.one("section", id="samples").all("div", class_="samples")[1].all("article")
    assert [article.one("span", class_="hash").text for article in shown] == [
        clip
        for (clip,) in ask(
            dataset,
            "(SELECT clip_id FROM clips WHERE aesthetic >= 5 ORDER BY aesthetic LIMIT 4) "
            "UNION ALL (SELECT clip_id FROM clips WHERE aesthetic < 5 "
            "ORDER BY aesthetic DESC LIMIT 4)",
        )
    ]
    assert [article.one("p", class_="note").text.split(":")[0] for article in shown] == (
        ["in the subset"] * 4 + ["out"] * 4
    )


def test_rules_use_the_column_with_their_scorer(tmp_path):
    """If another column has the role's name, its histogram stays its own."""
    clips = [
        Clip("generic-v0", n, n + 1, values={"similarity": 0.9, "umt": n / 100}) for n in range(40)
    ]
    dataset = build(
        tmp_path / "d", clips, [similarity(), given("umt", "UMT-SIM", "UMT_Score", "umt")]
    )
    freeze(
        dataset,
        "scorers:\n  similarity: {name: UMT-SIM, accepts: [{stage: take_given_score}]}"
        "\nrules:\n  - where: similarity >= 0.2\n",
        tmp_path,
    )
    root = report(dataset, tmp_path / "page.html", subset="chosen", sample_count=16)
    samples = root.one("section", id="samples").all("div", class_="samples")[1]
    assert samples.all("p", class_="note")[0].text == "in the subset: 0.2"
    headings = [heading.text for heading in root.one("section", id="samples").all("h3")]
    assert headings == ["At random", "umt ≥ 0.2"]
    titles = {card.one("h3").text: card for card in root.all("figure")}
    assert [
        titles[name].all("text", class_="threshold-text") != [] for name in ("umt", "similarity")
    ] == [True, False]
    assert "median 0.9" in titles["similarity"].one("figcaption").text
    assert "median 0.29," in titles["umt"].one("figcaption").text


def test_sample_clips_depend_on_the_seed(scored, tmp_path):
    def shown(seed: int) -> list[str]:
        root = report(scored, tmp_path / "page.html", seed=seed, sample_count=8)
        group = root.one("section", id="samples").all("div", class_="samples")[0]
        return [article.one("span", class_="hash").text for article in group.all("article")]

    first = shown(1)
    assert shown(1) == first != shown(2)
    assert len(first) == 4


def test_strips_show_the_clips_own_kept_frames(made, tmp_path):
    import cv2

    root = report(made.dataset, tmp_path / "page.html", sample_count=12)
    articles = root.all("article")
    assert articles
    for article in articles:
        image = article.one("img")
        clip = article.one("span", class_="hash").text
        assert clip in image.attributes["alt"]
        ((start, end),) = ask(
            made.dataset, f"SELECT start_seconds, end_seconds FROM clips WHERE clip_id = '{clip}'"
        )
        times = [
            int(m) * 60 + float(s)
            for m, s in re.findall(r"(\d+):(\d\d\.\d)", image.attributes["alt"])
        ]
        assert len(times) == 3
        assert all(start - 0.06 <= time < end + 0.06 for time in times)
        data = base64.b64decode(image.attributes["src"].removeprefix("data:image/jpeg;base64,"))
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[:2] == (
            int(image.attributes["height"]),
            int(image.attributes["width"]),
        )


def test_unreadable_frames_show_a_placeholder(finished):
    _, root = finished  # the frames of this dataset are invalid JPEGs
    assert root.all("p", class_="placeholder")
    assert not root.all("img")


@pytest.mark.slow
def test_page_of_noise_is_below_four_megabytes(tmp_path):
    """The hardest to compress: 60 clips, all with frames."""
    import cv2

    draw = np.random.default_rng(0)
    coarse = [draw.integers(0, 255, (126, 224, 3), np.uint8) for _ in range(3)]
    # Three pixels per grain, so that scaling to the strip's height does not smooth it away.
    noise = [cv2.imencode(".jpg", grain.repeat(3, 0).repeat(3, 1))[1].tobytes() for grain in coarse]
    build_dataset(tmp_path / "d", shards=2, videos=20, clips=4)
    for shard in ("000000", "000001"):
        videos = [
            video
            for (video,) in ask(
                tmp_path / "d",
                "SELECT DISTINCT video_id FROM steps.split_clips WHERE clip_id IS NOT "
                f"NULL AND shard LIKE '{shard}%' ORDER BY ALL",
            )
        ]
        rows = [
            {"video_id": video, "frame_number": n, "seconds": n / 3, "jpeg": noise[n % 3]}
            for video in videos
            for n in range(24)
        ]
        write_shard(
            tmp_path / "d",
            "scan_videos",
            STEPS["scan_videos"][1],
            shard,
            rows,
            FRAMES,
            table="frames",
        )
    root = report(tmp_path / "d", tmp_path / "page.html", sample_count=60)
    assert len(root.all("img")) == 60
    # 60 strips at their limit, as base64, and the rest of the page.
    assert (tmp_path / "page.html").stat().st_size < 3_200_000


def test_dataset_without_a_run_has_a_page(tmp_path):
    (tmp_path / "d" / "sources").mkdir(parents=True)
    root = report(tmp_path / "d", tmp_path / "page.html")
    assert "No run yet" in root.one("header").text
    assert "clipmill recipe list" in root.one("section", id="provenance").text


def test_clips_without_captions_and_scores_have_a_page(tmp_path):
    clips = [Clip("generic-v0", n, n + 2, caption=None) for n in range(9)]
    root = report(build(tmp_path / "d", clips, []), tmp_path / "page.html")
    assert root.one("section", id="captions").one("p", class_="nothing").text == (
        "No clip has a caption."
    )
    assert len(root.all("div", class_="samples")[0].all("article")) == 9
    assert numbers(root, "clip-durations")


def test_dataset_with_a_run_and_no_clip_has_a_page(tmp_path):
    root = report(build(tmp_path / "d", [], []), tmp_path / "page.html")
    assert root.one("section", id="samples").one("p", class_="nothing")
    assert stage_rows(root)["split_clips"] == [0, 0, 0, 0, 0, 0]


def test_custom_scores_are_drawn_and_infinite_ones_count_as_missing(tmp_path):
    values = [float("nan"), float("inf"), 1.0, 2.0, 3.0, None]
    clips = [
        Clip("generic-v0", n, n + 1, values={'a "b" <i>': value}) for n, value in enumerate(values)
    ]
    root = report(build(tmp_path / "d", clips, [own('a "b" <i>')]), tmp_path / "page.html")
    card = next(card for card in root.all("figure") if 'a "b" <i>' in card.one("h3").text)
    assert "mean 2" in card.one("figcaption").text
    assert "3 clips, 3 without" in card.one("figcaption").text


def test_subset_reports_how_many_clips_are_gone(scored, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(scored, dataset)
    freeze(dataset, "rules:\n  - where: duration_seconds > 2\n", tmp_path)
    gone = dataset / "split_clips" / "split_clips-1" / "000001.parquet"
    ((lost,),) = ask(
        dataset,
        "SELECT count(*) FROM steps.split_clips WHERE shard = '000001' AND duration_seconds > 2",
    )
    gone.unlink()
    root = report(dataset, tmp_path / "page.html", subset="chosen")
    assert root.one("p", class_="warning").text.startswith(
        f"{lost} clips of the subset are no longer"
    )


def test_existing_page_is_replaced_and_a_missing_folder_is_a_usage_error(scored, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("before")
    report(scored, page)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(UsageError, match=r"no folder .*missing; create it first"):
        write_report(scored, tmp_path / "missing" / "page.html")
    with pytest.raises(UsageError, match="this is a folder"):
        write_report(scored, tmp_path)
    with pytest.raises(UsageError, match="no subset 'other'"):
        write_report(scored, page, subset="other")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.53712, "0.537"),
        (3.14159, "3.14"),
        (12.345, "12.3"),
        (345.6, "346"),
        (0.00001, "1.0e-05"),
        (None, "–"),
        (100.0, "100"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers_have_about_three_digits(value, said):
    assert number(value) == said


def test_share_is_never_rounded_to_0_or_100_per_cent():
    assert percent(1, 100_000) == "< 0.1%"
    assert percent(99_999, 100_000) == "> 99.9%"
    assert (percent(0, 5), percent(5, 5), percent(1, 3), percent(0, 0)) == (
        "0%",
        "100%",
        "33%",
        "–",
    )
