import pytest

from lever_mlflow.files.names import full_name, readable_name


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("/data/OK_VQA v2.0", "ok-vqa-v2-0"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2-5-vl-3b-instruct"),
        ("/data/données", "donnees"),
        ("/data/数据", "unnamed"),
        ("/", "unnamed"),
        ("x" * 300, "x" * 60),
    ],
)
def test_readable_names(name, readable):
    assert readable_name(name) == readable


def test_full_names(tmp_path, monkeypatch):
    (tmp_path / "okvqa").mkdir()
    monkeypatch.chdir(tmp_path)
    assert full_name("okvqa") == full_name("./okvqa/") == full_name(f"{tmp_path}/okvqa") == str((tmp_path / "okvqa").resolve())
    assert full_name(".") == str(tmp_path.resolve())
    assert full_name("owner/name") == "owner/name"
