"""`clipmill report`: one self-contained HTML page about a dataset or a subset.

`page` is the entry point. `queries` and `words` query the catalog, `samples` picks clips and makes
their pictures, `published` holds InternVid's figures, `charts` computes geometry, and the
templates draw: all text reaches the page through Jinja2's escaping.
"""
