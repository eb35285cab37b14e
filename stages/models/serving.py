"""Settings shared by stages that may ask servers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from clipmill.stages.protocol import Stage, resource


class ServedStage(Stage):
    """How servers are asked, and how patiently."""

    server_timeout_seconds: float = resource(
        120.0, gt=0, description="maximum time to wait for one answer of a server"
    )
    server_retries: int = resource(
        4, ge=0, description="retries after 429, 5xx, a timeout or a lost connection"
    )
    server_first_wait_seconds: float = resource(
        1.0, ge=0, description="wait before the first retry; doubled for each further one"
    )
    server_key_variable: str = resource(
        "OPENAI_API_KEY", description="environment variable that holds the server's API key"
    )
    server_options: dict[str, Any] = Field(
        default_factory=dict,
        description="additional fields of each request; null removes a default (temperature: null)",
    )

    @property
    def client_settings(self) -> dict[str, Any]:
        """These settings, by the names that a client of servers has for them."""
        return {
            "timeout_seconds": self.server_timeout_seconds,
            "retries": self.server_retries,
            "first_wait_seconds": self.server_first_wait_seconds,
            "key_variable": self.server_key_variable,
            "options": self.server_options,
        }
