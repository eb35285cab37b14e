"""Checks of models before a run: everything that can be known without loading their weights."""
