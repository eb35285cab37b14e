"""Skipped rows: what a gate or a choice left out is counted apart from rejected and failed rows."""

from __future__ import annotations

import clipmill
from clipmill.jobs.status import print_status
from clipmill.pipeline.verify import verify


def test_skipped_rows_have_their_own_count_and_view_everywhere(words, capsys):
    data = words("a", "b?reject=fetch", "c?reject=fetch&rule=skipped", "d?fail=cut")
    data.run()
    opened = clipmill.open(data.dataset)
    status = opened.status()
    fetch, cut = status["stages"][:2]
    names = ("inputs", "kept", "rejected", "failed", "skipped", "not_asked", "pending")
    assert [fetch[name] for name in names] == [4, 2, 1, 0, 1, 0, 0]
    assert [cut[name] for name in names] == [2, 1, 0, 1, 0, 0, 0]
    assert status["skipped"] == [{"stage": "fetch_words", "detail": "as asked", "count": 1}]
    assert [reason["rule"] for reason in status["rejections"]] == ["fetch_words.rule"]
    footers = data.metadata("fetch_words")
    assert sum(footer.skipped for footer in footers) == 1
    assert all(f.inputs == f.kept + f.rejected + f.failed + f.skipped for f in footers)

    assert opened.sql("SELECT stage, rule, detail FROM skipped").fetchall() == [
        ("fetch_words", "skipped", "as asked")
    ]
    assert opened.sql("SELECT rule FROM rejections").fetchall() == [("fetch_words.rule",)]
    assert verify(data.dataset).faults == []
    print_status(data.dataset)
    said = capsys.readouterr().out
    assert "1 skipped: 1 at fetch_words (as asked)." in said
    assert "Every input is kept, rejected, failed or skipped" in said
