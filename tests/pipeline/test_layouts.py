"""`import --format` of published layouts other than InternVid's, as their authors publish them."""

# The rows stand as they were published.
# ruff: noqa: E501
from __future__ import annotations

import json
from pathlib import Path

import pytest

import clipmill
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.schemas.errors import UsageError

WATCH = "https://www.youtube.com/watch?v="
ONE, TWO = "nVbIUDjzWY4", "CTPAZ2euJ2Q"
PANDA = f"""videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection
{ONE},{WATCH}{ONE},"[['0:00:02.000', '0:00:08.500'], ['0:01:05.250', '1:00:00.000']]","['A ball.', ""It's a cube.""]","[0.44, 0.51]","['desirable', '0_low_desirable_score']","[[['0:00:02.000', '0:00:08.500']], [['0:01:05.250', '1:00:00.000']]]"
{TWO},{WATCH}{TWO},"[['0:00:09.000', '0:00:03.000']]","['A cone.']",[0.43],['desirable'],"[[['0:00:01.000', '0:00:03.000']]]"
"""
KOALA = f"""videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,video_training_suitability_score
{ONE}_0,{WATCH}{ONE},"['0:00:01.001', '0:00:07.507']",A diver.,0.9,5.3,22.0,3.5
{ONE}_1,{WATCH}{ONE},"['0:00:07.507', '0:00:12.012']",A shark.,0.8,5.1,3.9,3.0
{TWO}_0,{WATCH}{TWO},"['0:00:00.000', 'soon']",A truck.,0.9,4.9,23.8,2.5
"""
OPENVID = """video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds
celebv_a_0.mp4,A woman speaks.,5.1,3.2,0.99,static,100,24.0,4.1
celebv_a_1.mp4,"She, again.",4.9,2.0,0.98,pan_left,120,24.0,
"""
MIRA = f"""clip_id,source,video_url,video_id,width,height,fps,seconds,timestamp,frame_number,framestamp,file_path,short_caption,dense_caption
1.0,youtube gaming,{WATCH}{ONE},{ONE},1280,720,30.0,60.0,"['00:00:10.000', '00:01:10.000']",1800,"[300, 2100]",video_clip/1.0.mp4,Short.,Dense.
"""
MIRA_0 = f"""index,video_id,start_frame,end_frame,main_object_caption,short_caption,dense_caption,fps,start_timestep,end_timestep,,
000000008783_{ONE}-000114,{ONE},163272,166872,Main.,Short.,Dense.,30,1:30:42,1:32:42,,
"""
SPATIAL = f"""id,group id,YouTube id,timestamp_start,timestamp_end,luminance score,aesthetic score,motion score
0a00f99d,1,{ONE},00:00:04.240,00:00:19.280,111.2,5.2,7.5
"""
HOWTO = json.dumps({ONE: {"start": [0.5, 3], "end": [3, 5.25], "text": ["cut it", "stir"]}})
FORMATS = {
    "panda-70m": ("p.csv", PANDA),
    "koala-36m": ("k.csv", KOALA),
    "openvid-1m": ("o.csv", OPENVID),
    "miradata": ("m.csv", MIRA),
    "spatialvid": ("s.csv", SPATIAL),
    "howto100m": ("h.json", HOWTO),
}


def take(folder: Path, name: str, text: str, format_: str):
    path = folder / name
    path.write_text(text)
    dataset = folder / "dataset"
    report = clipmill.import_published(dataset, [path], format_)
    parts = (report.kept, report.rejected, report.failed, report.known)
    assert report.rows == sum(parts)
    return dataset, parts


def rows(dataset: Path, columns: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(f"SELECT {columns} FROM clips ORDER BY start_seconds").fetchall()


def test_panda_70m(tmp_path):
    dataset, parts = take(tmp_path, "p.csv", PANDA, "panda-70m")
    assert parts == (1, 0, 1, 0)
    assert rows(dataset, "clip_id, caption_given, panda_matching, media") == [
        (f"youtube-{ONE}-2000-8500", "A ball.", 0.44, "absent"),
        (f"youtube-{ONE}-65250-3600000", "It's a cube.", 0.51, "absent"),
    ]
    with open_catalog(dataset) as catalog:
        [(message,)] = catalog.execute("SELECT message FROM failures").fetchall()
    assert message == (
        f"{tmp_path}/p.csv:3: {WATCH}{TWO}: the span from 9 to 3 s is empty or negative"
    )
    assert clipmill.open(dataset).create_subset("panda-10m").info["n_clips"] == 2
    assert take(tmp_path, "p.csv", PANDA, "panda-70m")[1] == (0, 0, 1, 1)


def test_koala_36m(tmp_path):
    dataset, parts = take(tmp_path, "k.csv", KOALA, "koala-36m")
    assert parts == (2, 0, 1, 0)
    found = rows(dataset, "start_seconds, koala_clarity, koala_aesthetic, koala_motion, koala_vtss")
    assert found == [(1.001, 0.9, 5.3, 22.0, 3.5), (7.507, 0.8, 5.1, 3.9, 3.0)]


def test_openvid_1m_is_one_clip_per_file(tmp_path):
    dataset, parts = take(tmp_path, "o.csv", OPENVID, "openvid-1m")
    assert parts == (2, 0, 0, 0)
    [clip] = rows(
        dataset,
        "start_seconds, end_seconds, caption_given, openvid_consistency, openvid_aesthetic, "
        "openvid_motion, extra['camera motion']",
    )
    assert clip == (0.0, 4.1, "A woman speaks.", 0.99, 5.1, 3.2, "static")


@pytest.mark.parametrize(("text", "span"), [(MIRA, (10.0, 70.0)), (MIRA_0, (5442.0, 5562.0))])
def test_miradata_of_both_versions(tmp_path, text, span):
    dataset, parts = take(tmp_path, "m.csv", text, "miradata")
    assert parts == (1, 0, 0, 0)
    [clip] = rows(
        dataset, "video_id, start_seconds, end_seconds, caption_given, extra['short_caption']"
    )
    assert clip == (f"youtube-{ONE}", *span, "Dense.", "Short.")


def test_spatialvid(tmp_path):
    dataset, _ = take(tmp_path, "s.csv", SPATIAL, "spatialvid")
    [clip] = rows(dataset, "clip_id, spatialvid_luminance, spatialvid_aesthetic, spatialvid_motion")
    assert clip == (f"youtube-{ONE}-4240-19280", 111.2, 5.2, 7.5)


def test_speech_of_howto100m(tmp_path):
    dataset, _ = take(tmp_path, "h.json", HOWTO, "howto100m")
    assert rows(dataset, "clip_id, caption_given") == [
        (f"youtube-{ONE}-500-3000", "cut it"),
        (f"youtube-{ONE}-3000-5250", "stir"),
    ]


@pytest.mark.parametrize("format_", FORMATS)
def test_wrong_format_names_the_one_that_the_file_looks_like(tmp_path, format_):
    name, text = FORMATS[format_]
    other = "koala-36m" if format_ != "koala-36m" else "miradata"
    for wrong in (other, "internvid"):
        with pytest.raises(UsageError, match=rf"{name} is not .* looks like --format {format_}\Z"):
            take(tmp_path, name, text, wrong)
    assert not (tmp_path / "dataset").exists()
