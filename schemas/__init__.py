"""The ground floor: what every table holds, how errors are named, how ids are made.

Imports pyarrow and the standard library only, so that anything may import it cheaply.
"""
