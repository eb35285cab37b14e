"""Exports: writes the clips of a dataset or subset for training.

An export has three steps; an interrupted export resumes in any of them:

select    selects the clips' rows, with data about their videos; sorts and pins them in files
units     processes bounded groups of rows in parallel: cuts media, renders samples
write     writes shards of about the requested size, in order
"""
