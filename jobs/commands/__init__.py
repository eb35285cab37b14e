"""The commands of `clipmill`, one module for each group that `clipmill --help` shows.

Thin on purpose: heavy imports wait until a command needs them.
"""
