"""The prompt that the demo's summariser was trained on, and that its recipe must therefore use."""

from collections.abc import Sequence

from jinja2 import Environment

SUMMARY_PROMPT = (
    "coarse: {{ coarse }}. fine: {{ fine | join('. ') }}. tags: {{ tags | join(', ') }}."
)
"""Jinja template over `coarse` (text), `fine` (texts in time order) and `tags` (words)."""

_TEMPLATE = Environment(autoescape=False).from_string(SUMMARY_PROMPT)


def render_summary_prompt(coarse: str, fine: Sequence[str], tags: Sequence[str]) -> str:
    return _TEMPLATE.render(coarse=coarse, fine=fine, tags=tags)
