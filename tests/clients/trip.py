"""What clients ask for in a schema or a tool: no model would keep to it unless it is enforced."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Trip(BaseModel):
    """A trip to a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Oslo", "Lima", "Pune"]
    days: int = Field(ge=1, le=7)
    dry: bool
