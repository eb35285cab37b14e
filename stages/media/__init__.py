"""Pixels and files."""

from stages.media.scenedetect_probe import spare_the_probe

spare_the_probe()
