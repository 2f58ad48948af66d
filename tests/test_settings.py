import os
from pathlib import Path

import pytest

from pd_core.errors import BadParams
from pd_core.settings import TELEMETRY_OFF, load_settings, telemetry_off


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PD_")]:
        monkeypatch.delenv(variable)


def test_without_an_environment_everything_is_inside_the_project() -> None:
    settings = load_settings()

    assert settings.data_root is None
    assert settings.mlflow_tracking_uri is None
    assert settings.device is None


def test_variables_and_the_env_file_are_read_and_variables_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("PD_DATA_ROOT=from_file\nPD_MLFLOW_EXPERIMENT=from_file\nOTHER=1\n")
    monkeypatch.setenv("PD_DATA_ROOT", "from_variable")

    settings = load_settings()

    assert settings.data_root == Path("from_variable")
    assert settings.mlflow_experiment == "from_file"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_S3_SECRET_ACCESS_KEY", "hidden-value")

    settings = load_settings()

    assert "hidden-value" not in f"{settings!r} {settings}"
    assert settings.s3_secret_access_key is not None
    assert settings.s3_secret_access_key.get_secret_value() == "hidden-value"


def test_a_bad_device_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_DEVICE", "gpu")

    with pytest.raises(BadParams, match="PD_DEVICE: give cpu, mps, cuda"):
        load_settings()


def test_telemetry_is_off_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in TELEMETRY_OFF:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")

    telemetry_off()

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"


def test_a_mirror_is_an_address_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_MIRROR", "s3://bucket/prefix")
    assert load_settings().mirror == "s3://bucket/prefix"
    monkeypatch.setenv("PD_MIRROR", "https://bucket/prefix")

    with pytest.raises(BadParams, match="PD_MIRROR: give s3://<bucket>/<prefix>"):
        load_settings()
