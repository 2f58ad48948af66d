"""Settings from the environment and `.env`."""

import os
from pathlib import Path

import pytest

from pd_core.core.errors import BadParams
from pd_core.pipeline.processes import environment
from pd_core.pipeline.redaction import variables
from pd_core.pipeline.settings import (
    TELEMETRY_OFF,
    Settings,
    load_settings,
    telemetry_off,
    variable_names,
)


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


def test_secrets_and_the_tracking_address_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_S3_SECRET_ACCESS_KEY", "hidden-word\n")  # as files of secrets end
    monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", "http://me:hidden-word@host")

    settings = load_settings()

    assert "hidden-word" not in f"{settings!r} {settings}"
    assert settings.s3_secret_access_key is not None
    assert settings.s3_secret_access_key.get_secret_value() == "hidden-word"
    assert settings.mlflow_tracking_uri == "http://me:hidden-word@host"


def test_several_api_keys_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().api_keys == ()
    monkeypatch.setenv("PD_SERVE_API_KEYS", "first-0123456789, second/0123456789==\n")
    assert load_settings().api_keys == ("first-0123456789", "second/0123456789==")
    assert "0123456789" not in repr(load_settings())


def test_telemetry_is_off_unless_the_user_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in TELEMETRY_OFF:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")

    telemetry_off()

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"


@pytest.mark.parametrize("address", ["s3://bucket/dvc", "s3://bucket", "/mnt/shared/dvc"])
def test_a_dvc_remote_is_an_address_of_s3_or_a_whole_path(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PD_DVC_REMOTE", address)
    assert load_settings().dvc_remote == address


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PD_DEVICE", "gpu", "give auto, cpu, mps, cuda"),
        ("PD_MIRROR", "https://bucket/prefix", "give s3://<bucket>/<prefix>"),
        ("PD_S3_ENDPOINT_URL", "http://me:hidden-word@host", "leave name and password out"),
        ("PD_DVC_REMOTE", "shared/dvc", "give s3://<bucket>/<prefix>, or a folder's whole path"),
        ("PD_DVC_REMOTE", "s3://me:hidden-word@bucket", "PD_S3_SECRET_ACCESS_KEY are for them"),
        ("PD_SERVE_API_KEYS", "hidden-word", "at least 16 letters"),
        ("PD_SERVE_API_KEYS", "hidden-word-0123456789,", "separated by commas"),
        ("PD_PREFECT_API_URL", "127.0.0.1:4200", "give an address like http://127.0.0.1:4200/api"),
        ("PD_PREFECT_API_URL", "http://me:hidden-word@host/api", "PREFECT_API_AUTH_STRING is for"),
    ],
)
def test_values_that_cannot_be_are_refused_without_repeating_secrets(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadParams, match=f"{variable}: .*{reason}") as caught:
        load_settings()
    assert "hidden-word" not in str(caught.value)


def test_paths_of_settings_may_start_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PD_DATA_ROOT", "~/photos")
    monkeypatch.setenv("PD_DVC_REMOTE", "$HOME/dvc")
    monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", "sqlite:///~/mlflow.db")

    settings = load_settings()

    assert settings.data_root == tmp_path / "photos"
    assert settings.dvc_remote == f"{tmp_path}/dvc"
    assert settings.mlflow_tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_an_address_with_a_dollar_in_its_password_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PD_MLFLOW_TRACKING_URI", "http://me:$HOME~@host")

    assert load_settings().mlflow_tracking_uri == "http://me:$HOME~@host"


def test_the_env_file_of_the_project_is_read_in_all_folders_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, below = tmp_path / "project", tmp_path / "project" / "notes" / "deep"
    below.mkdir(parents=True)
    (project / ".dvc").mkdir()
    (project / ".env").write_text("PD_DATA_ROOT=photos\nPD_MLFLOW_EXPERIMENT=mine\n")
    monkeypatch.chdir(below)

    settings = load_settings()

    assert settings.mlflow_experiment == "mine"
    assert settings.data_root == project / "photos"
    assert variables()["PD_DATA_ROOT"] == "photos"
    assert environment()["PD_DATA_ROOT"] == str(project / "photos")  # for commands elsewhere

    Path(".env").write_text("PD_MLFLOW_EXPERIMENT=nearer\n")
    assert load_settings().mlflow_experiment == "nearer"


def test_a_project_of_dvc_inside_another_has_the_env_file_of_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / ".dvc", tmp_path / "paper" / ".dvc"):
        folder.mkdir(parents=True)
    (tmp_path / ".env").write_text("PD_MLFLOW_EXPERIMENT=outer\n")
    monkeypatch.chdir(tmp_path / "paper")

    assert load_settings().mlflow_experiment == "outer"

    Path(".env").write_text("PD_MLFLOW_EXPERIMENT=inner\n")
    assert load_settings().mlflow_experiment == "inner"


def test_an_env_file_of_no_project_or_of_another_repository_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("PD_MLFLOW_EXPERIMENT=other\n")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    assert load_settings().mlflow_experiment == "promptkd"

    (tmp_path / ".dvc").mkdir()
    (tmp_path / "own" / ".git").mkdir()
    assert load_settings().mlflow_experiment == "promptkd"


def test_an_env_file_that_cannot_be_read_is_one_line() -> None:
    Path(".env").write_bytes(b"PD_DEVICE=\xff\xfe")

    with pytest.raises(BadParams, match=r"'\.env' cannot be read \(it is not UTF-8\)"):
        load_settings()


def test_the_example_names_every_variable_and_sets_none() -> None:
    example = Path(__file__).parents[2] / ".env.example"
    lines = example.read_text().splitlines()
    named = [line[2:].partition("=")[0] for line in lines if line.startswith("# PD_")]
    assert sorted(named) == sorted(variable_names())
    Path(".env").write_text(example.read_text())
    assert load_settings() == Settings(_env_file=None)

    Path(".env").write_text(example.read_text().replace("# PD_", "PD_"))
    assert load_settings().mirror == "s3://bucket/prefix"
