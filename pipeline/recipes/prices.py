"""What work costs, as a recipe's `prices` say, and the amounts that are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import near_or_known

_DEAREST = 1e9


class Prices(BaseModel):
    """Prices in one currency; what has none costs nothing in the estimates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str = Field("USD", description="its name or sign, for display and for --budget")
    cpu_hour: float | None = Field(None, description="one processor core for an hour")
    gpu_hour: float | None = Field(None, description="one GPU for an hour")
    million_tokens: float | None = Field(
        None, description="a million tokens of a model server, to it and from it"
    )
    million_tokens_in: float | None = Field(
        None, description="instead: a million tokens sent to the server"
    )
    million_tokens_out: float | None = Field(
        None, description="and a million tokens that it generates"
    )
    gigabyte: float | None = Field(
        None, description="a gigabyte (10⁹ bytes) of media and tables that a run stores"
    )

    @model_validator(mode="before")
    @classmethod
    def _known_units(cls, value: Any) -> Any:
        known = list(cls.model_fields)
        for name in value if isinstance(value, Mapping) else ():
            if name not in known:
                raise ValueError(f"unknown price {name!r}; {near_or_known(str(name), known)}")
        return value

    @field_validator("currency")
    @classmethod
    def _a_word(cls, value: str) -> str:
        if not value.strip() or any(c.isspace() or c.isdigit() for c in value) or len(value) > 8:
            raise ValueError("expected a currency's name or sign, such as USD or €")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _a_price(cls, value: Any, info: Any) -> Any:
        if info.field_name == "currency" or value is None:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("expected a number, the price in the recipe's currency")
        if not math.isfinite(value) or not 0 <= value <= _DEAREST:
            raise ValueError(f"a price is between 0 and {_DEAREST:,.0f}")
        return float(value)

    @model_validator(mode="after")
    def _one_price_per_token(self) -> Prices:
        apart = (self.million_tokens_in, self.million_tokens_out)
        if self.million_tokens is not None and apart != (None, None):
            raise ValueError(
                "give million_tokens, or million_tokens_in and million_tokens_out, not both"
            )
        return self

    @property
    def has_any(self) -> bool:
        return any(value is not None for name, value in self if name != "currency")

    def of(self, amounts: Mapping[str, Any]) -> Any:
        """The price of amounts, by what footers call them; numbers or arrays of numbers.

        What is missing in `amounts`, and has a price, makes the sum unknown: not a number.
        """
        sent = self.million_tokens if self.million_tokens_in is None else self.million_tokens_in
        made = self.million_tokens if self.million_tokens_out is None else self.million_tokens_out
        parts = (
            (self.cpu_hour, "cpu_seconds", 3600),
            (self.gpu_hour, "gpu_seconds", 3600),
            (sent, "tokens_in", 1e6),
            (made, "tokens_out", 1e6),
            (self.gigabyte, "downloaded_bytes", 1e9),
            (self.gigabyte, "written_bytes", 1e9),
        )
        money: Any = 0.0
        for price, name, unit in parts:
            if price:
                money = money + price / unit * amounts.get(name, math.nan)
        return money


def read_prices(given: Mapping[str, Any]) -> Prices:
    """Prices as a recipe writes them; UsageError if they make no sense."""
    try:
        return Prices.model_validate(dict(given))
    except ValidationError as error:
        said = [problem["msg"].removeprefix("Value error, ") for problem in error.errors()]
        places = [".".join(map(str, ("prices", *problem["loc"]))) for problem in error.errors()]
        raise UsageError(
            "\n".join(f"{place}: {text}" for place, text in zip(places, said, strict=True))
        ) from error
