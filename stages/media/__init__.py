"""Pixels and files."""

from clipmill.stages.media.read.scenedetect_probe import spare_the_probe

spare_the_probe()
