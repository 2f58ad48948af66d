"""The zero-shot table says what each CLIP knows before anything is tuned."""

import json
from pathlib import Path

import tiny

from recipes.embedded_clips import zero_shot_table


def test_the_table_has_every_data_set_and_the_average_of_each_model(tmp_path: Path) -> None:
    for name in ("flowers", "pets"):
        tiny.prepared(tmp_path / "prepare" / name)
    weights = tiny.weights(tmp_path)
    table = zero_shot_table(
        tmp_path / "prepare",
        tmp_path / "out",
        datasets=["flowers", "pets"],
        models={"tiny": weights},
        threads=1,
    )
    assert set(table) == {"flowers", "pets", "average"}
    assert table["average"]["tiny"] == (table["flowers"]["tiny"] + table["pets"]["tiny"]) / 2
    assert json.loads((tmp_path / "out" / "zero_shot.json").read_text()) == table
    assert "| flowers |" in (tmp_path / "out" / "zero_shot.md").read_text()
