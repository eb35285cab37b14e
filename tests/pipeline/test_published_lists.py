"""Published datasets' lists, in their original layouts, become sources with spans."""

# The rows stand as they were published.
# ruff: noqa: E501
from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.ingest.sources import SourceSpec, ingest
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from tests.pipeline.test_lists import kept, read, said, take

WATCH = "https://www.youtube.com/watch?v="
ONE, TWO, THREE = "nVbIUDjzWY4", "CTPAZ2euJ2Q", "_97kyZVWVG0"


def read_as(report) -> str:
    return report.describe_lists().partition("; read ")[2]


def test_panda_70m(tmp_path):
    text = f"""videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection
{ONE},{WATCH}{ONE},"[['0:00:02.000', '0:00:08.500'], ['0:01:05.250', '1:00:00.000']]","['A ball.', ""It's a cube.""]","[0.44, 0.51]","['desirable', '0_low_desirable_score']","[[['0:00:02.000', '0:00:08.500']], [['0:01:05.250', '1:00:00.000']]]"
{TWO},{WATCH}{TWO},"[['0:00:01.000', '0:00:03.000']]","['A cone.']",[0.43],['desirable'],"[[['0:00:01.000', '0:00:03.000']]]"
{THREE},{WATCH}{THREE},"[['0:00:01.000', '0:00:03.000']]","['One.', 'Two.']",[0.4],['desirable'],[]
"""
    report, rows = take(tmp_path, "panda.csv", text)
    assert said(rows[0]) == [(2, 8.5, "A ball."), (65.25, 3600, "It's a cube.")]
    assert [dict(span["extra"])["matching_score"] for span in rows[0]["spans"]] == ["0.44", "0.51"]
    assert dict(rows[1]["spans"][0]["extra"])["desirable_filtering"] == "desirable"
    assert said(rows[2]) == [(1, 3, ["One.", "Two."])]
    assert read_as(report) == "`timestamp` as spans."


def test_internvid_csv(tmp_path):
    text = f"""YoutubeID,Start_timestamp,End_timestamp,Caption,Aesthetic_Score,UMT_Score
{ONE},00:00:01.000,00:00:04.250,A ball.,4.5,0.41
{ONE},00:00:05.000,00:00:09.000,A cube.,4.1,0.38
{TWO},00:00:05.000,00:00:09.000,A cone.,3.9,0.35
"""
    report, rows = take(tmp_path, "internvid.csv", text)
    assert kept(rows, "platform_id") == [ONE, TWO]
    assert said(rows[0]) == [(1, 4.25, "A ball."), (5, 9, "A cube.")]
    assert dict(rows[1]["spans"][0]["extra"])["UMT_Score"] == "0.35"
    assert read_as(report) == "`Start_timestamp` and `End_timestamp` as spans."


def test_koala_36m(tmp_path):
    text = f"""videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score
{ONE}_0,{WATCH}{ONE},"['0:00:01.001', '0:00:07.507']",A diver.,0.9,5.3,22.0
{ONE}_1,{WATCH}{ONE},"['0:00:07.507', '0:00:12.012']",A shark.,0.8,5.1,3.9
{TWO}_0,{WATCH}{TWO},"['0:00:00.000', '0:00:05.005']",A truck.,0.9,4.9,23.8
"""
    report, rows = take(tmp_path, "koala.csv", text)
    assert said(rows[0]) == [(1.001, 7.507, "A diver."), (7.507, 12.012, "A shark.")]
    assert [dict(span["extra"])["videoID"] for span in rows[0]["spans"]] == [f"{ONE}_0", f"{ONE}_1"]
    assert (report.kept, report.gathered, report.failed) == (2, 1, 0)


def test_openvid_1m(tmp_path):
    text = """video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds
celebv_a_0.mp4,A woman speaks.,5.1,3.2,0.99,static,100,24.0,4.1
celebv_a_1.mp4,"She, again.",4.9,2.0,0.98,pan_left,120,24.0,5.0
celebv_b_0.mp4,A man.,4.8,1.0,0.97,static,96,24.0,4.0
"""
    _, rows = take(tmp_path, "OpenVid-1M.csv", text)
    assert [Path(path).name for path in kept(rows, "path")] == [
        "celebv_a_0.mp4",
        "celebv_a_1.mp4",
        "celebv_b_0.mp4",
    ]
    assert kept(rows, "caption")[1] == "She, again."
    assert dict(rows[0]["extra"])["seconds"] == "4.1"


def test_miradata(tmp_path):
    text = f"""clip_id,source,video_url,video_id,width,height,fps,seconds,timestamp,frame_number,framestamp,file_path,short_caption,dense_caption
1.0,youtube gaming,{WATCH}{ONE},{ONE},1280,720,30.0,60.0,"['00:00:10.000', '00:01:10.000']",1800,"[300, 2100]",video_clip/1.0.mp4,Short.,Dense.
1.1,youtube gaming,{WATCH}{ONE},{ONE},1280,720,30.0,60.0,"['00:02:10.000', '00:03:10.000']",1800,"[3900, 5700]",video_clip/1.1.mp4,Short 2.,Dense 2.
2.0,youtube city,{WATCH}{TWO},{TWO},1280,720,30.0,60.0,"['00:00:00.000', '00:01:00.000']",1800,"[0, 1800]",video_clip/2.0.mp4,Short 3.,Dense 3.
"""
    report, rows = take(tmp_path, "miradata.csv", text)
    assert said(rows[0]) == [(10, 70, "Dense."), (130, 190, "Dense 2.")]
    assert kept(rows, "video_id") == [None, None]
    extra = dict(rows[0]["spans"][0]["extra"])
    assert (extra["short_caption"], extra["framestamp"]) == ("Short.", "[300, 2100]")
    assert read_as(report) == "`timestamp` as spans, `dense_caption` as captions."


def test_msr_vtt(tmp_path):
    value = {
        "info": {"version": "1.0"},
        "videos": [
            {
                "category": 9,
                "url": WATCH + ONE,
                "video_id": "video0",
                "start time": 137.72,
                "end time": 149.44,
                "split": "train",
                "id": 0,
            },
            {
                "category": 16,
                "url": WATCH + ONE,
                "video_id": "video1",
                "start time": 184.33,
                "end time": 199.31,
                "split": "train",
                "id": 1,
            },
            {
                "category": 9,
                "url": WATCH + TWO,
                "video_id": "video2",
                "start time": 1.0,
                "end time": 11.0,
                "split": "test",
                "id": 2,
            },
        ],
        "sentences": [
            {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
            {"caption": "a man drives", "video_id": "video0", "sen_id": 1},
            {"caption": "a dog", "video_id": "video2", "sen_id": 2},
        ],
    }
    report, rows = take(tmp_path, "train_val_videodatainfo.json", json.dumps(value))
    assert (report.kept, report.gathered) == (2, 1)
    assert said(rows[0]) == [
        (137.72, 149.44, ["a car is shown", "a man drives"]),
        (184.33, 199.31, None),
    ]
    assert [dict(span["extra"])["video_id"] for span in rows[0]["spans"]] == ["video0", "video1"]
    assert kept(rows, "video_id") == [None, "video2"]


def test_msr_vtt_by_rows(tmp_path):
    for name in ("video0.mp4", "video1.mp4"):
        (tmp_path / name).touch()
    text = "video_id,caption\nvideo0,a car\nvideo0,a vehicle\nvideo1,a dog\n"
    _, rows = take(tmp_path, "msrvtt.csv", text)
    assert kept(rows, "path") == [str(tmp_path / "video0.mp4"), str(tmp_path / "video1.mp4")]
    assert kept(rows, "captions") == [["a car", "a vehicle"], None]


def test_webvid(tmp_path):
    text = """videoid,contentUrl,duration,page_dir,name
21179416,https://ak.picdn.example/21179416/preview/stock.mp4,PT00H00M11S,006001_006050,Aerial shot winter forest
5629184,https://ak.picdn.example/5629184/preview/stock.mp4,PT00H00M29S,071501_071550,"Senior couple, looking"
1063125190,https://ak.picdn.example/1063125190/preview/stock.mp4,PT00H00M15S,103751_103800,A beautiful cookie
"""
    report, rows = take(tmp_path, "results_2M_val.csv", text)
    assert kept(rows, "caption") == [
        "Aerial shot winter forest",
        "Senior couple, looking",
        "A beautiful cookie",
    ]
    assert dict(rows[0]["extra"])["videoid"] == "21179416"
    assert read_as(report) == "`name` as captions."


def test_howto100m(tmp_path):
    text = f"""video_id,category_1,category_2,rank,task_id
{ONE},Cars & Other Vehicles,Motorcycles,27,52907
{TWO},Cars & Other Vehicles,Motorcycles,35,109057
{ONE},Hobbies and Crafts,Crafts,34,119814
"""
    report, rows = take(tmp_path, "HowTo100M_v1.csv", text, platform="youtube")
    assert kept(rows, "platform_id") == [ONE, TWO]
    assert report.rejected == 1  # the same video for another task
    words = {
        ONE: {"start": [0.5, 2.0], "end": [2.0, 4.5], "text": ["first", "then"]},
        THREE: {"start": [1], "end": [2], "text": ["only"]},
    }
    (tmp_path / "captions").mkdir()
    _, rows = take(tmp_path / "captions", "raw_caption.json", json.dumps(words), platform="youtube")
    assert said(rows[0]) == [(0.5, 2, "first"), (2, 4.5, "then")]


def test_vidgen_1m(tmp_path):
    names = [f"{name}-Scene-0013" for name in (ONE, TWO, THREE)]
    for name in names[:2]:
        (tmp_path / f"{name}.mp4").touch()
    value = [{"vid": name, "caption": f"clip {at}"} for at, name in enumerate(names)]
    report, rows = take(tmp_path, "VidGen_1M_video_caption.json", json.dumps(value))
    assert kept(rows, "path") == [str(tmp_path / f"{name}.mp4") for name in names[:2]]
    assert kept(rows, "caption") == ["clip 0", "clip 1"]
    assert report.failed == 1
    assert "nor an existing file" in rows[2]["error"]["message"]


@pytest.mark.parametrize(
    "header",
    [
        "time_start,time_end",
        "start_sec,end_sec",
        "begin,end",
        "Start Time,End Time",
        "start_ms,end_ms",
    ],
)
def test_other_column_names_for_times(tmp_path, header):
    scale = 1000 if "ms" in header else 1
    text = f"video_url,{header},sentence\n{WATCH}{ONE},{2 * scale},{4 * scale},x\n"
    report, rows = take(tmp_path, "a.csv", text)
    assert said(rows[0]) == [(2, 4, "x")]
    first, last = header.split(",")
    assert read_as(report) == f"`{first}` and `{last}` as spans, `sentence` as captions."


# Spans in objects


def test_hd_vila(tmp_path):
    rows = [
        {
            "video_id": one,
            "url": WATCH + one,
            "clip": [
                {"clip_id": f"{one}.{at}.mp4", "span": [f"00:00:{at}0.000", f"00:00:{at}8.900"]}
                for at in range(1, count + 1)
            ],
        }
        for one, count in ((ONE, 2), (TWO, 1), (THREE, 0))
    ]
    report, found = take(tmp_path, "hdvila.jsonl", "\n".join(map(json.dumps, rows)))
    assert said(found[0]) == [(10, 18.9, None), (20, 28.9, None)]
    assert said(found[1]) == [(10, 18.9, None)]
    assert found[2]["spans"] is None
    assert dict(found[0]["spans"][1]["extra"])["clip_id"] == f"{ONE}.2.mp4"
    assert read_as(report) == "`clip` as spans."


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_clips_of_video2dataset(tmp_path, form):
    clips = [[1.0, 3.5], ["00:00:05.000", "00:00:09.000"]]
    if form == "parquet":
        clips[1] = [5.0, 9.0]
        table = pa.table({"url": [WATCH + ONE], "clips": [clips], "caption": ["A ball."]})
        pq.write_table(table, tmp_path / "list.parquet")
        text = (tmp_path / "list.parquet").read_bytes()
    elif form == "csv":
        # counts are also named so
        text = f'url,clips,caption\n{WATCH}{ONE},"{clips}",A ball.\n{WATCH}{TWO},12,A cube.\n'
    else:
        text = json.dumps([{"url": WATCH + ONE, "clips": clips, "caption": "A ball."}])
    report, rows = take(tmp_path, f"list.{form}", text)
    assert said(rows[0]) == [(1, 3.5, "A ball."), (5, 9, "A ball.")]
    assert read_as(report).startswith("`clips` as spans")
    if form == "csv":
        assert (rows[1]["caption"], dict(rows[1]["extra"])["clips"]) == ("A cube.", "12")


@pytest.mark.parametrize("clips", ["[1, 2]", '["a.mp4", "b.mp4"]', '[[1, 2], "x"]', "many", "{}"])
def test_other_columns_of_these_names_stay_text(tmp_path, clips):
    report, rows = take(
        tmp_path, "list.jsonl", json.dumps({"url": WATCH + ONE, "annotations": clips})
    )
    assert (rows[0]["spans"], dict(rows[0]["extra"])) == (None, {"annotations": clips})
    assert read_as(report) == ""


def test_objects_with_times_keep_their_other_fields(tmp_path):
    row = {
        "url": WATCH + ONE,
        "caption": "All of it.",
        "id": 7,
        "segments": [
            {"id": 0, "start": 0, "end": 4.5, "text": " Hello."},
            {"id": 1, "start": 4.5, "end": 6, "text": None},
        ],
    }
    _, rows = take(tmp_path, "list.jsonl", json.dumps(row))
    assert said(rows[0]) == [(0, 4.5, "Hello."), (4.5, 6, None)]
    assert dict(rows[0]["spans"][1]["extra"]) == {
        "caption": "All of it.",
        "id": "7",
        "segments.id": "1",
    }
    named = row | {"url": WATCH + TWO}
    (tmp_path / "other").mkdir()
    _, rows = take(tmp_path / "other", "list.jsonl", json.dumps(named), caption_column="caption")
    assert said(rows[0]) == [(0, 4.5, "All of it."), (4.5, 6, "All of it.")]
    assert dict(rows[0]["spans"][0]["extra"])["text"] == "Hello."


def test_milliseconds_in_objects(tmp_path):
    row = {"url": WATCH + ONE, "segments": [{"start_ms": 1500, "end_ms": 4000}]}
    assert said(take(tmp_path, "list.jsonl", json.dumps(row))[1][0]) == [(1.5, 4, None)]


def test_activity_net(tmp_path):
    database = {
        ONE: {"url": WATCH + ONE, "annotations": [{"segment": [0.3, 12.5], "label": "Juggling"}]},
        TWO: {"url": WATCH + TWO, "annotations": []},
    }
    taxonomy = [{"nodeName": "Playing", "nodeId": 1}]
    text = json.dumps({"version": "1.3", "taxonomy": taxonomy, "database": database})
    report, rows = take(tmp_path, "activity_net.json", text)
    assert kept(rows, "platform_id") == [ONE, TWO]
    assert said(rows[0]) == [(0.3, 12.5, None)]
    assert dict(rows[0]["spans"][0]["extra"]) == {"label": "Juggling"}
    assert read_as(report) == "`annotations` as spans."


def test_youcook(tmp_path):
    annotations = [{"segment": [90, 102], "id": 0, "sentence": "Spread."}]
    row = {"video_url": WATCH + ONE, "subset": "training", "annotations": annotations}
    _, rows = take(tmp_path, "youcook.json", json.dumps({"database": {ONE: row}}))
    assert said(rows[0]) == [(90, 102, "Spread.")]
    assert kept(rows, "platform_id") == [ONE]


def test_activity_net_captions(tmp_path):
    text = json.dumps({f"v_{ONE}": {"timestamps": [[0.8, 9], [7, 60.8]], "sentences": ["A", "B"]}})
    _, rows = take(tmp_path, "train.json", text, platform="youtube")
    assert said(rows[0]) == [(0.8, 9, "A"), (7, 60.8, "B")]
    assert kept(rows) == [WATCH + ONE]


@pytest.mark.parametrize("name", [f"{ONE}_000010_000020", f"{ONE}_10_20"])
def test_times_in_the_name_of_a_clip(tmp_path, name):
    text = f"videoID,caption\n{name},A ball.\n{ONE}_40_52.5,A cube.\n{ONE}_9_3,Backwards.\n"
    report, rows = take(tmp_path, "vatex.csv", text, platform="youtube")
    assert said(rows[0]) == [(10, 20, "A ball."), (40, 52.5, "A cube.")]
    assert kept(rows) == [WATCH + ONE]
    assert (report.gathered, report.failed) == (1, 1)
    (tmp_path / "other").mkdir()
    _, rows = take(tmp_path / "other", "vatex.csv", text)
    assert "--set platform=youtube" in rows[0]["error"]["message"]


def test_captions_in_objects(tmp_path):
    captions = [{"idx": "-1", "content": "All."}, {"idx": "0", "content": "A ball."}]
    row = {"url": WATCH + ONE, "timestamp": ["0:00:01.0", "0:00:11.9"], "captions": captions}
    _, rows = take(tmp_path, "sharegpt4video.jsonl", json.dumps(row))
    assert said(rows[0]) == [(1, 11.9, ["All.", "A ball."])]


@pytest.mark.parametrize(
    "names", ["timestamp_start,timestamp_end", "video_start_time,video_end_time"]
)
def test_further_names_of_times(tmp_path, names):
    _, rows = take(tmp_path, "list.csv", f"url,{names}\n{WATCH}{ONE},0:10,0:30\n")
    assert said(rows[0]) == [(10, 30, None)]


@pytest.mark.parametrize("value", ["10,5", "0:10,5", "10.5"])
def test_decimal_comma(tmp_path, value):
    text = f"url;start;end\r\n{WATCH}{ONE};{value};20,25\r\n{WATCH}{TWO};1;1,234\r\n"
    _, rows = take(tmp_path, "excel.csv", text)
    assert said(rows[0]) == [(10.5, 20.25, None)]
    assert "'1,234': decimals or thousands?" in rows[1]["error"]["message"]


def test_dates_are_not_reported_as_spans(tmp_path):
    text = f"url,timestamp\n{WATCH}{ONE},2021-01-01 10:00\n"
    report, rows = take(tmp_path, "list.csv", text)
    assert (rows[0]["spans"], read_as(report)) == (None, "")


def test_empty_list(tmp_path):
    for name in ("list.csv", "list.tsv"):
        with pytest.raises(UsageError, match=rf"{name} is empty"):
            take(tmp_path, name, "\n")


def test_columns_named_for_all_lists(tmp_path):
    (tmp_path / "a.csv").write_text(f"watch,from,until,said\n{WATCH}{ONE},1,4,A ball.\n")
    (tmp_path / "b.csv").write_text(f"{TWO},5,9,A cube.\n")
    (tmp_path / "run.yaml").write_text("stages: {download_videos: {}}")
    with pytest.raises(UsageError, match=r"--set url_column=.*Its columns: watch, from"):
        take(tmp_path, "a.csv", (tmp_path / "a.csv").read_bytes())

    def read_with(name, *overrides):
        recipe = load_recipe(tmp_path / "run.yaml", overrides=list(overrides)).recipe
        dataset = tmp_path / f"of_{name}"
        spec = SourceSpec(path=name)
        ingest(dataset, [spec], shard_videos=16, base_folder=tmp_path, for_lists=recipe.for_lists)
        return read(dataset)

    columns = ("url_column=watch", "span_columns=from,until", "caption_column=said")
    assert said(read_with("a.csv", *columns)[0]) == [(1, 4, "A ball.")]
    rows = read_with("b.csv", "columns=youtube_id,start,end,caption")
    assert (said(rows[0]), kept(rows)) == ([(5, 9, "A cube.")], [WATCH + TWO])
