"""The data sets that a flow's form offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

DataSet = str
