"""Exports: the clips of a dataset or subset, written for training.

An export goes in three steps, each of which a killed export goes on from:

    select    the clips' rows, with the facts of their videos, sorted and pinned in files
    units     bounded groups of those rows, in parallel: media cut, samples rendered
    write     shards of about the wished size, in order

`request` says what is asked, `folder` what lies in the export's folder and whether it may be
written to, `selection` makes the rows, `units` works on them, `rolling` and `packing` write
shards, and one module a format knows how its files look. `run` puts it together.
"""
