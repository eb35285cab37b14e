"""File names that are taken for videos."""

MEDIA_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts",
     ".m2ts", ".mts", ".3gp", ".ogv")
)
