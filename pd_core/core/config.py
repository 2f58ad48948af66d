"""The base of typed settings, and the types that several of them share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class Config(BaseModel):
    """A block of keys: unknown ones are refused, nothing is converted, nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OriginalFile(Config):
    """A teacher's checkpoint of the published code.

    Attributes:
        path: The file.
        sha256: The hash that it has to have, since DVC does not watch the file.
    """

    path: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
