"""Subsets: recipes of SQL rules over `clips`, what they would take, and frozen lists of clips."""
