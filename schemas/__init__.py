"""The lowest layer: column types, SQL that reads tables, names of errors, how ids are made.

Imports pyarrow and the standard library only, so that anything may import it cheaply.
"""
