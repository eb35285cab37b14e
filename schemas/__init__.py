"""The lowest layer: schemas of all tables, names of errors, how ids are made.

Imports pyarrow and the standard library only, so that anything may import it cheaply.
"""
