"""The command that checks thresholds against people's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import Dataset, MemoryLimit, Parameters, StatusFormat
from clipmill.jobs.help_pages import Commands

app = Commands("Make training data")


@app.command()
def audit(
    dataset: Dataset,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help='a condition with a threshold, e.g. "aesthetic >= 4.5 AND motion > 2"',
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="instead: a frozen subset's name, or a subset recipe",
            autocompletion=completion.subsets_and_recipes,
        ),
    ] = None,
    rule: Annotated[
        int | None,
        typer.Option(metavar="N", help="the number of the subset's rule, if several have one"),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE", help='which threshold of several: "aesthetic", or "motion >= 2"'
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="how many clips to draw; by default 30")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the sample")] = 42,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X", help="another threshold to report from the same labels; repeatable"
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="TEXT", help="what a label answers, shown to who labels")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="the audit's name; alone, it opens one that exists",
            autocompletion=completion.audit_names,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="take labels from a file: clip_id,label (yes or no)"),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="write the sample to a new file to fill in"),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="write a page with the clips' kept frames"),
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="don't show scores to who labels")] = False,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="who labels; by default your user name")
    ] = None,
    set_: Parameters = None,
    format_: StatusFormat = "table",
    memory_limit: MemoryLimit = None,
) -> None:
    """Label clips around a threshold, for its precision and recall with error bars."""
    from clipmill.jobs.audit import audit as run_audit

    run_audit(
        dataset,
        where=where,
        subset=subset,
        rule=rule,
        score=score,
        sample=sample,
        seed=seed,
        thresholds=threshold or [],
        question=question,
        name=name,
        labels=labels,
        write=write,
        page=page,
        blind=blind,
        by=by,
        settings=set_ or [],
        format=format_,
        memory_limit=memory_limit,
    )
