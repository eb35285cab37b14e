"""The built-in demo: a small world of films whose truth is known, and models trained on it."""
