"""`clipmill report`: one self-contained HTML page about a dataset, or about a subset of it.

`page` is the door. `queries` and `words` ask the catalog, `samples` picks clips and makes their
pictures, `published` holds InternVid's figures, `charts` computes geometry, and the templates
draw: all text reaches the page through Jinja2's escaping.
"""
