"""Subsets: recipes of SQL rules over `clips`, what they would keep, and frozen lists of clips."""
