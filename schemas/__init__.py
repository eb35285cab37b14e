"""The lowest layer: column types, SQL that reads tables, names of errors, how ids are made.

Imports only pyarrow and the standard library, so that importing it is cheap.
"""
