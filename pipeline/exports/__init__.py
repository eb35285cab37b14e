"""Exports: writes the clips of a dataset or subset for training.

An export has three steps; an interrupted export resumes from each of them:

    select    the clips' rows, with the facts of their videos, sorted and pinned in files
    units     bounded groups of those rows, in parallel: media cut, samples rendered
    write     shards of about the wished size, in order
"""
