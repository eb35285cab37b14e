"""`clipmill report`: one self-contained HTML page about a dataset or a subset."""
