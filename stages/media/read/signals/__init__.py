"""Measures pictures without any model: what the decode pass keeps for the signals of clips.

docs/signals.md defines each signal, with its unit and the FFmpeg filter that it follows.
"""
