"""The data sets that a flow's form offers."""

from __future__ import annotations

DataSet = str
