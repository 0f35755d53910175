"""A registered retriever behind ``mlflow models serve``, and loaded where this package is not installed."""

import base64
import io
import json
import math
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.projects import ROOT
from helpers.servers import free_port
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from lever_mlflow.data import features
from lever_mlflow.selector.checkpoint import load_selector, selector_digest
from lever_mlflow.serving import logged_models
from lever_mlflow.serving.requests import QUERY_IMAGES
from lever_mlflow.serving.retriever import Retriever, load_retriever
from lever_mlflow.serving.retriever_model import RequestError, RetrieverModel

MODEL = "models:/served@champion"
PARQUET = "application/vnd.apache.parquet"


def row(sample):
    return {"question": sample.question, "image": encoded_bytes(sample.image_path.read_bytes())}


def encoded_bytes(content):
    return base64.b64encode(content).decode()


def encoded(image, format="PNG"):
    content = io.BytesIO()
    image.save(content, format)
    return encoded_bytes(content.getvalue())


@pytest.fixture(scope="module")
def logged(tmp_path_factory, make_retriever):
    """A store whose registered model ``served`` has a champion, and the files of that before anything loads it."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("serving", artifact_location=(folder / "artifacts").as_uri())
    retriever = make_retriever()
    with mlflow.start_run(experiment_id=experiment), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", False)  # as for most users
        model_id = logged_models.log_retriever("retriever", retriever, params={"epoch": 1}, tags={"gate": "pass"})
    (root,) = (folder / "artifacts").glob(f"**/{model_id}/artifacts")
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    version = mlflow.register_model(f"models:/{model_id}", "served").version
    MlflowClient().set_registered_model_alias("served", "champion", version)
    return uri, names


@pytest.fixture(scope="module")
def store(logged):
    """The store's URI."""
    return logged[0]


@pytest.fixture
def model(store):
    mlflow.set_tracking_uri(store)
    return mlflow.pyfunc.load_model(MODEL)


class Served:
    """Runs ``mlflow models serve`` as a user types it."""

    def __init__(self, store, folder):
        self.log, port = folder / "server.log", free_port()
        self.url = f"http://127.0.0.1:{port}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PATH": path}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "-p", str(port)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**environment, **settings, QUERY_IMAGES: str(folder)}, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/ping", timeout=1):
                    return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)

    def post(self, request, content_type="application/json"):
        """Status and body of an answer to a request, as JSON or as it is."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        headers = {"Content-Type": content_type}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.url}/invocations", body, headers)) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def refusal_of(self, request):
        """What the model told of a request that it refuses, in one line."""
        status, body = self.post(request)
        assert status == 400, body
        assert set(body) == {"error_code", "message"}, "no traceback, no data"
        assert body["error_code"] == "INVALID_PARAMETER_VALUE"
        assert "\n" not in body["message"]
        return body["message"]


@pytest.fixture(scope="module")
def served(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    server = Served(store, folder)
    yield server
    server.process.terminate()
    server.process.wait()


def test_a_server_answers_as_the_model_does_in_this_process(served, model, small):
    rows = [row(sample) for sample in small.val]
    status, body = served.post({"inputs": rows, "params": {"shots": 3}})
    assert status == 200
    expected = model.predict(rows, params={"shots": 3})
    by_id = {sample.question_id: sample for sample in small.train}
    for answer, picks in zip(body["predictions"], expected, strict=True):
        assert answer["question_ids"] == picks.question_ids
        assert answer["logprob"] == pytest.approx(picks.logprob, abs=1e-5)
        assert answer["questions"] == [by_id[i].question for i in answer["question_ids"]]
        assert answer["answers"] == [by_id[i].answer for i in answer["question_ids"]]
        assert answer["messages"] is None
    assert len({tuple(answer["question_ids"]) for answer in body["predictions"]}) > 4
    (alone,) = served.post({"inputs": rows[3:4]})[1]["predictions"]
    assert alone["question_ids"] == body["predictions"][3]["question_ids"][:2]  # two shots unless told otherwise


def test_features_and_messages_over_http(served, model, small):
    table = small.features("val")
    pairs = zip(table.image_SD.tolist(), table.text_SD.tolist(), strict=True)
    rows = [{"image_features": image, "text_features": text} for image, text in pairs]
    answers = served.post({"inputs": [*rows, row(small.val[0])]})[1]["predictions"]
    assert [answer["question_ids"] for answer in answers[:-1]] == [picks.question_ids for picks in model.predict(rows)]
    (answer,) = served.post({"inputs": [row(small.val[0])], "params": {"as_messages": True}})[1]["predictions"]
    assert answer["question_ids"] == answers[-1]["question_ids"]
    system, user = answer["messages"]
    assert system["content"][0]["text"] == "Answer the last question in a few words, after 2 solved examples."
    texts = [part["text"] for part in user["content"] if part["type"] == "text"]
    demonstrations = zip(answer["questions"], answer["answers"], strict=True)
    assert texts == [
        *(f"Question: {question} Short answer: {text}\n" for question, text in demonstrations),
        f"Question: {small.val[0].question} Short answer:",
    ]
    assert "features cannot be shown" in served.refusal_of({"inputs": rows, "params": {"as_messages": True}})


def test_features_as_bytes_are_answered_as_lists_are(served, model, small):
    table = small.features("val")
    pairs = [(table.image_SD[i], table.text_SD[i]) for i in range(8)]
    forms = {
        "lists": lambda vector: vector.tolist(),
        "base64": lambda vector: base64.b64encode(vector.tobytes()).decode(),
        "bytes": lambda vector: vector.tobytes(),
        "arrays": lambda vector: vector,
    }
    rows = {
        name: [{"image_features": form(image), "text_features": form(text)} for image, text in pairs]
        for name, form in forms.items()
    }
    expected = served.post({"inputs": rows["lists"]})
    assert expected[0] == 200
    assert served.post({"inputs": rows["base64"]}) == expected
    for name in ("lists", "base64", "bytes", "arrays"):
        assert served.post(pd.DataFrame(rows[name]).to_parquet(), PARQUET) == expected, name
    for row_of_form in rows.values():
        answers = [answer.model_dump() for answer in model.predict(row_of_form)]
        assert [a["question_ids"] for a in answers] == [a["question_ids"] for a in expected[1]["predictions"]]
    mixed = [rows[name][i] for i, name in enumerate(["lists", "base64"] * 4)]
    assert served.post({"inputs": mixed}) == expected
    short = {**rows["base64"][0], "text_features": encoded_bytes(bytes(4 * 511))}
    refusal = served.refusal_of({"inputs": [rows["lists"][0], short]})
    assert refusal.startswith("row 1: text_features: 511 numbers, expected 512")


def test_images_in_parquet(served, small):
    frame = pd.DataFrame([{"question": s.question, "image": s.image_path.read_bytes()} for s in small.val])
    assert served.post(frame.to_parquet(), PARQUET) == served.post({"inputs": [row(sample) for sample in small.val]})
    both = pd.concat([frame, pd.DataFrame([{"question": "a", "image": b"%PDF-1.7"}])])
    status, body = served.post(both.to_parquet(), PARQUET)
    assert (status, body["message"][:41]) == (400, "row 8: image is no PNG or JPEG image (of ")


LARGE, BOMB = Image.new("L", (4001, 4000)), Image.new("1", (14_000, 14_000))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": None}, "holds image; give question and image, or image_features and text_features"),
        ({"answer": "a"}, "unknown column 'answer'; columns are question, image, image_features, text_features"),
        ({"question": 5}, "question is of type int; give text"),
        ({"question": "a" * 10_000}, "question has 10000 characters, at most 2000 are taken; shorten it"),
        ({"image": "http://127.0.0.1:9/a"}, "image is a URL, and none is fetched"),
        ({"image": "file:///etc/passwd"}, "image is a URL, and none is fetched"),
        ({"image": "data:image/png;base64,AAAA"}, "image is a URL, and none is fetched"),
        ({"image": "../a.png"}, f"image is no readable file in the folder that {QUERY_IMAGES} names"),
        ({"image": "/etc/passwd"}, "image is no"),
        ({"image": "AAA"}, "image is not base64"),
        ({"image": "A" * (14 * 2**20)}, "image has more than 10485760 bytes"),
        ({"image": encoded(LARGE)}, "image has 4001 x 4000 pixels, at most 16000000 are taken"),
        ({"image": encoded(BOMB)}, "image is no PNG or JPEG image (Image size (196000000 pixels) exceeds limit"),
        ({"image": encoded(LARGE.resize((500, 500)), "JPEG")[:1200]}, "image does not decode as an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_refused_in_one_line(served, small, columns, message):
    good = row(small.val[0])
    assert served.refusal_of({"inputs": [good, {**good, **columns}]}).startswith(f"row 1: {message}")


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([], {}, "no rows in the request; send at least one"),
        (None, {"shots": 0}, "shots=0 with a pool of 12 candidates; choose 1 to 12"),
        (None, {"shots": 13}, "shots=13 with a pool of 12 candidates; choose 1 to 12"),
        ([{"image_features": [1.0], "text_features": [1.0]}], {}, "row 0: image_features: 1 numbers, expected 512"),
        ([{"image_features": [math.nan] * 512, "text_features": [1]}], {}, "row 0: image_features: of length nan, expected"),
        ([{"image_features": [math.inf] * 512, "text_features": [1]}], {}, "row 0: image_features: of length inf, expected"),
        (
            [{"question": "a", "image": encoded(Image.new("L", (4000, 10)))}],
            {"as_messages": True},
            "row 0: image: cannot be shown to the VLM",
        ),
    ],
)
def test_a_bad_request_is_refused_in_one_line(served, small, rows, params, message):
    rows = [row(small.val[0])] if rows is None else rows
    assert served.refusal_of({"inputs": rows, "params": params}).startswith(message)


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({"inputs": "abc"}, "Expected list, but got str"),
        ({"inputs": ["abc"]}, "Expecting example to be a dictionary"),
        ({"dataframe_records": [{"question": "a"}]}, "Request payload must be a dictionary with 'inputs' key"),
        ({"dataframe_split": {"columns": ["question"], "data": [["a"]]}}, "Request payload must be a dictionary with 'inputs'"),
        ({"inputs": [{"question": "a"}], "params": {"shots": "three"}}, "Failed to validate type and shape for 'shots'"),
        (b'{"inputs": [', "Ensure that input is a valid JSON formatted string"),
    ],
)
def test_what_the_server_itself_refuses(served, request_body, message):
    status, body = served.post(request_body)
    assert status == 400
    assert message in body["message"]
    assert "stack_trace" not in body


def test_what_is_no_parquet_file_is_refused_by_the_server(served):
    status, body = served.post(b"PAR1", PARQUET)
    assert status == 400
    assert "Failed to parse input as a Pandas DataFrame" in body["message"]


def test_files_are_read_in_the_folder_of_the_server(served, small, tmp_path):
    folder, sample = served.log.parent, small.val[0]
    (folder / "query.jpg").write_bytes(sample.image_path.read_bytes())
    (tmp_path / "secret.png").write_bytes(sample.image_path.read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    request = {"inputs": [{**row(sample), "image": "query.jpg"}]}
    assert served.post(request) == served.post({"inputs": [row(sample)]})
    assert "no readable file" in served.refusal_of({"inputs": [{**row(sample), "image": "link.png"}]})
    assert "no readable file" in served.refusal_of({"inputs": [{**row(sample), "image": str(tmp_path / "secret.png")}]})


def test_many_clients_at_once(served, small):
    requests = [{"inputs": [row(sample)], "params": {"shots": 4}} for sample in small.val]
    expected = [served.post(request) for request in requests]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(served.post, requests * 3))
    for (status, body), (_, alone) in zip(answers, expected * 3, strict=True):
        assert status == 200
        assert body["predictions"][0]["question_ids"] == alone["predictions"][0]["question_ids"]


def test_the_model_in_python(model, small, monkeypatch):
    rows = [row(sample) for sample in small.val]
    expected = [picks.question_ids for picks in model.predict(rows)]
    assert [picks.question_ids for picks in model.predict(pd.DataFrame(rows))] == expected
    frame = pd.DataFrame({"image_features": list(small.features("val").image_SD[:2]), "text_features": [None, None]})
    with pytest.raises(MlflowException, match="row 0: holds image_features; give"):
        model.predict(frame)
    with pytest.raises(MlflowException, match="no rows"):
        model.predict(pd.DataFrame({"question": [], "image": []}))
    python_model = model.unwrap_python_model()
    for params, message in (
        ({"shot": 3}, "unknown parameter shot; parameters are shots and as_messages"),
        ({"shots": 2.0}, "shots=2.0; give a whole number"),
        ({"shots": True}, "shots=True; give a whole number"),
        ({"as_messages": 1}, "as_messages=1; give true or false"),
    ):
        with pytest.raises(MlflowException) as raised:  # of the class that the model's own run of the file made
            python_model.predict(None, rows, params)
        assert raised.value.line == message
    monkeypatch.setattr(features, "Encoder", None)  # the encoder of a second loading is that of the first
    assert [picks.question_ids for picks in mlflow.pyfunc.load_model(MODEL).predict(rows)] == expected


def test_a_question_is_answered_before_the_server_is_ready(make_retriever, monkeypatch):
    requests, retrieve = [], Retriever.retrieve

    def recorded(retriever, queries, shots):
        requests.append(([query.question for query in queries], shots))
        return retrieve(retriever, queries, shots)

    monkeypatch.setattr(Retriever, "retrieve", recorded)
    RetrieverModel().load_context(type("Context", (), {"artifacts": {"checkpoint": str(make_retriever() / "checkpoint")}}))
    assert requests == [(["what is this?"], 2)]


def test_what_fails_inside_tells_the_client_nothing(make_retriever, small, caplog):
    broken = RetrieverModel()
    broken.load_context(type("Context", (), {"artifacts": {"checkpoint": str(make_retriever() / "checkpoint")}}))
    broken.retriever = None
    with pytest.raises(RequestError) as raised:
        broken.predict(None, [row(small.val[0])])
    assert json.loads(raised.value.serialize_as_json()) == {
        "error_code": "INTERNAL_ERROR",
        "message": "the request failed; the server's log tells why",
    }
    assert raised.value.get_http_status_code() == 500
    assert "'NoneType' object has no attribute 'feature_dims'" in caplog.text


def test_a_registered_version_is_a_checkpoint_too(store, make_retriever):
    mlflow.set_tracking_uri(store)
    expected = load_retriever(make_retriever()).settings.checkpoint_digest
    assert selector_digest(load_selector(logged_models.checkpoint_folder(MODEL))) == expected


def test_what_is_logged(logged, model):
    _, names = logged
    files = mlflow.artifacts.download_artifacts(MODEL)
    assert {"MLmodel", "retriever_model.py", "code/lever_mlflow/serving/retriever.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pyc"))]
    assert not [name for name in names if "/mini/vlm/" in name]
    requirements = (Path(files) / "requirements.txt").read_text().split()
    assert all("==" in requirement for requirement in requirements)
    signature = model.metadata.signature
    (columns,) = (column["properties"] for column in signature.inputs.to_dict())
    assert {name: spec["type"] for name, spec in columns.items()} == {
        "question": "string",
        "image": "string",
        "image_features": "array",
        "text_features": "array",
    }
    assert [param["name"] for param in signature.params.to_dict()] == ["shots", "as_messages"]
    assert json.loads((Path(files) / "serving_input_example.json").read_text())["params"] == {"shots": 2, "as_messages": False}


@pytest.mark.slow
def test_it_loads_where_only_its_requirements_are(store, small, tmp_path):
    """In a process that finds this package in the model alone, and none of the libraries that the model does not require."""
    (tmp_path / "row.json").write_text(json.dumps(row(small.val[0])))
    script = """
import json, sys
for name in ("accelerate", "datasets", "great_expectations", "openai"):
    sys.modules[name] = None
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import lever_mlflow
print(json.dumps([lever_mlflow.__file__, model.predict([json.load(open("row.json"))])[0].question_ids]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_REGISTRY_URI": store}
    command = [sys.executable, "-c", script, MODEL]
    result = subprocess.run(command, cwd=tmp_path, env={**environment, **settings}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    path, picks = json.loads(result.stdout.splitlines()[-1])
    assert Path(path).parent.parent.name == "code"
    mlflow.set_tracking_uri(store)
    assert picks == mlflow.pyfunc.load_model(MODEL).predict([row(small.val[0])])[0].question_ids
    assert not np.array_equal(picks, [])


def test_the_lines_of_the_documentation_work_as_they_are(served, model, small, tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text()
    _, curl, _, python, parquet, refusal = (block.strip() for block in page.split("```")[1::2])
    (tmp_path / "query.jpg").write_bytes(small.val[0].image_path.read_bytes())
    line = curl.replace("http://127.0.0.1:5001", served.url)
    result = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    (answer,) = json.loads(result.stdout)["predictions"]
    rows = [{**row(small.val[0]), "question": "what is the roman numeral for this number?"}]
    assert answer["question_ids"] == model.predict(rows)[0].question_ids
    names = {"image_base64": row(small.val[0])["image"]}
    exec(python.replace("models:/lever-selector-mini-mini@champion", MODEL), names)
    assert names["picks"] == model.predict([{**rows[0], "question": "what is this?"}])[0].question_ids
    exec(parquet.replace("http://127.0.0.1:5001", served.url), names)
    assert [answer["question_ids"] for answer in names["predictions"]] == [names["picks"]]
    assert served.refusal_of({"inputs": [{**rows[0], "question": "a" * 10_000}]}) == json.loads(refusal)["message"]
