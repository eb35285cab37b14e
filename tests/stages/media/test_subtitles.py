"""Subtitle files of all formats, as sites and people write them."""

from __future__ import annotations

import json

import pytest

from clipmill.stages.media.read.subtitles import decoded, parse_subtitles


def lines(text: str, kind: str, **how) -> list[tuple[float, float, str]]:
    return [
        (span.start_seconds, span.end_seconds, span.text)
        for span in parse_subtitles(text, kind, **how)
    ]


def srt(*cues: tuple[str, str]) -> str:
    return "".join(f"{number}\n{times}\n{text}\n\n" for number, (times, text) in enumerate(cues, 1))


ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:01.000 --> 00:00:03.000 align:start position:0%
\x20
good<00:00:01.500><c> morning</c><00:00:02.000><c> to</c>

00:00:03.000 --> 00:00:03.010 align:start position:0%
good morning to
\x20

00:00:03.010 --> 00:00:06.000 align:start position:0%
good morning to
all<00:00:04.250><c> of</c><00:00:05.000><c> you</c>

00:00:06.000 --> 00:00:06.010 align:start position:0%
all of you
\x20

00:00:06.010 --> 00:00:07.000 align:start position:0%
all of you
all of you
"""


def test_automatic_track_gives_each_line_once_with_word_times():
    spans = parse_subtitles(ROLLING, "vtt", automatic=True)
    assert lines(ROLLING, "vtt", automatic=True) == [
        (1.0, 3.0, "good morning to"),
        (3.01, 6.0, "all of you"),
        (6.01, 7.0, "all of you"),
    ]
    assert [(word.seconds, word.text) for word in spans[1].words] == [
        (3.01, "all"),
        (4.25, " of"),
        (5.0, " you"),
    ]
    assert spans[2].words == ()


def test_automatic_line_ends_where_the_next_begins():
    events = [
        {"tStartMs": 0, "dDurationMs": 60000, "id": 1, "wpWinPosId": 1},
        {
            "tStartMs": 500,
            "dDurationMs": 4000,
            "wWinId": 1,
            "segs": [{"utf8": "one"}, {"utf8": " two", "tOffsetMs": 700}],
        },
        {
            "tStartMs": 1990,
            "dDurationMs": 2500,
            "wWinId": 1,
            "aAppend": 1,
            "segs": [{"utf8": "\n"}],
        },
        {
            "tStartMs": 2000,
            "dDurationMs": 3000,
            "wWinId": 1,
            "segs": [{"utf8": "x < 5 &amp; <b>"}, {"utf8": " then", "tOffsetMs": 900}],
        },
    ]
    text = json.dumps({"events": events})
    assert lines(text, "json3", automatic=True) == [
        (0.5, 2.0, "one two"),
        (2.0, 5.0, "x < 5 &amp; <b> then"),
    ]
    assert [[word.seconds for word in span.words] for span in parse_subtitles(text, "json3")] == [
        [0.5, 1.2],
        [2.0, 2.9],
    ]


def test_human_written_repetitions_stay_and_may_overlap():
    text = srt(
        ("00:00:01,000 --> 00:00:04,000", "- No."),
        ("00:00:02,500 --> 00:00:03,500", "- No."),
        ("00:00:04,000 --> 00:00:05,000", "Row, row\nGently"),
        ("00:00:06,000 --> 00:00:07,000", "Row, row\nMerrily"),
    )
    assert lines(text, "srt", automatic=False) == [
        (1.0, 4.0, "- No."),
        (2.5, 3.5, "- No."),
        (4.0, 5.0, "Row, row Gently"),
        (6.0, 7.0, "Row, row Merrily"),
    ]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("if x < 5 and y > 3 then", "if x < 5 and y > 3 then"),
        ("I <3 you; press <Enter> -> next", "I <3 you; press <Enter> -> next"),
        (
            "<i>It</i>'s <font color='#fff'>AT&amp;T</font>, &lt;b&gt;, &amp;nbsp;, it&#39;s",
            "It's AT&T, <b>, &nbsp;, it's",
        ),
        (r"{\an8}{\i1}up{\i0} <b>here</b>", "up here"),
        ("{ not markup }", "{ not markup }"),
    ],
)
def test_only_real_markup_is_removed(shown, text):
    assert lines(srt(("00:00:01,000 --> 00:00:02,000", shown)), "srt") == [(1.0, 2.0, text)]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ("00:01,000 --> 00:02,000", (1.0, 2.0)),
        ("0:00:01.5 --> 0:00:02.25", (1.5, 2.25)),
        ("100:00:01,000 --> 100:00:02,000", (360001.0, 360002.0)),
        ("-00:00:01,000 --> 00:00:02,000", (0.0, 2.0)),
        ("00:01-->00:02", (1.0, 2.0)),
        ("00:00:01,000 -> 00:00:02,000", (1.0, 2.0)),
        ("00:00:01,000 --> 00:00:02,000 X1:100 X2:200 Y1:10 Y2:20", (1.0, 2.0)),
        ("00:00:01.469 --> 00:00:02.001", (1.469, 2.001)),
    ],
)
@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_all_time_formats(times, found, kind):
    assert lines(f"WEBVTT\n\n1\n{times}\nword\n", kind) == [(*found, "word")]


@pytest.mark.parametrize(
    "times",
    [
        "00:00:02,000 --> 00:00:01,000",
        "-00:00:03,0 --> -00:00:01,0",
        "00:00:01,000 --> 00:00:01,000",
    ],
)
def test_cue_that_is_never_shown_is_left_out(times):
    assert lines(srt((times, "never"), ("00:00:03,000 --> 00:00:04,000", "shown")), "srt") == [
        (3.0, 4.0, "shown")
    ]


def test_subrip_variants():
    cues = (
        "1\n00:00:01,000 --> 00:00:02,000\nin\n1999\n2\n00:00:03,000 --> 00:00:04,000\n42\n"
        "3\n00:00:05,000 --> 00:00:06,000\n\nlate\n\nand later\n"
    )
    found = [(1.0, 2.0, "in 1999"), (3.0, 4.0, "42"), (5.0, 6.0, "late and later")]
    for text in (cues, cues.replace("\n", "\r\n"), "\ufeff" + cues.replace("\n", "\r")):
        assert lines(text, "srt") == found


def test_webvtt_comments_styles_regions_and_names_are_left_out():
    text = """\ufeffWEBVTT - a title
X-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000

STYLE
::cue { color: red }

REGION
id:fred

NOTE
00:00:07.000 --> 00:00:08.000
left out

intro
00:01.000 --> 00:04.000 region:fred line:0
<v Bob>Notes &amp; x
\x20
<c.yellow.bg_blue>more</c>

2
00:02.000 --> 00:03.000
<v.loud Amy><i>Hi</i> <lang en>you</lang>

00:05.000 --> 00:06.000
<ruby>漢<rt>kan</rt>字<rt>ji</rt></ruby>
"""
    assert lines(text, "vtt") == [
        (1.0, 4.0, "Notes & x more"),
        (2.0, 3.0, "Hi you"),
        (5.0, 6.0, "漢字"),
    ]


def test_ass_dialogue_without_commands_comments_and_drawings():
    text = r"""[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\i1}Hello{\i0}, x < 5\Nnext\hline
Comment: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,not said
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\p1}m 0 0 l 1 1{\p0}
"""
    assert lines(text, "ass") == [(1.0, 2.5, "Hello, x < 5 next line")]


@pytest.mark.parametrize(
    "namespace", ["http://www.w3.org/ns/ttml", "http://www.w3.org/2006/10/ttaf1"]
)
def test_ttml_times_in_frames_and_ticks_and_nested(namespace):
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="{namespace}" xmlns:ttp="http://www.w3.org/ns/ttml#parameter" ttp:frameRate="25"
    ttp:tickRate="10000000"><head><metadata>no</metadata></head><body><div>
<p begin="00:00:01:12" end="00:00:02:00">frames<br/>x &lt; <span>5</span></p>
<p begin="30000000t" end="40000000t">ticks</p><p begin="5s" dur="1500ms">long</p>
<p begin="00:00:09.500" end="00:00:10">plain</p><p begin="275f" end="0.2m">mixed</p></div>
<div begin="20s"><p begin="1s"><span begin="0s" end="1s">a</span><span begin="1s" end="2s">b</span>
</p></div></body></tt>"""
    assert lines(text, "ttml") == [
        (1.48, 2.0, "frames x < 5"),
        (3.0, 4.0, "ticks"),
        (5.0, 6.5, "long"),
        (9.5, 10.0, "plain"),
        (11.0, 12.0, "mixed"),
        (21.0, 22.0, "a"),
        (22.0, 23.0, "b"),
    ]


@pytest.mark.parametrize("kind", ["ttml", "dfxp"])
@pytest.mark.parametrize(
    "text",
    [
        "<tt",
        "<html/>",
        '<tt><body><p begin="soon" end="2s">x</p></body></tt>',
        '<tt frameRate="0"><body><p begin="1f" end="2f">x</p></body></tt>',
        '<!DOCTYPE t [<!ENTITY a "aaaaaaaaaa">]><tt><body><p begin="x">&b;</p></body></tt>',
    ],
)
def test_invalid_ttml_is_an_error(text, kind):
    with pytest.raises(ValueError, match=r"TTML|ttml"):
        parse_subtitles(text, kind)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("naïve “quotes”".encode("cp1252"), "naïve “quotes”"),
        (b"\xef\xbb\xbfna\xc3\xafve", "naïve"),
        ("naïve".encode("utf-16"), "naïve"),
        ("漢字かな".encode() + b"\xff", "漢字かな\ufffd"),
    ],
)
def test_encoding_is_detected_from_the_bytes(data, text):
    assert decoded(data) == text
