"""Where the cache folder is."""

from pathlib import Path

from lever_mlflow.files.cache_dir import CACHE_DIR, default_cache_dir


def test_the_environment_variable_names_the_folder(monkeypatch, tmp_path):
    assert CACHE_DIR == "LEVER_MLFLOW_CACHE"
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    assert default_cache_dir() == tmp_path


def test_the_folder_is_in_the_users_home_otherwise(monkeypatch):
    for clear in (lambda: monkeypatch.delenv(CACHE_DIR, raising=False), lambda: monkeypatch.setenv(CACHE_DIR, "")):
        clear()
        assert default_cache_dir() == Path.home() / ".cache" / "lever-mlflow"
