import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from lever_mlflow.exceptions import CheckpointError, MissingRunError
from lever_mlflow.registry import versions
from lever_mlflow.selector.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving import logged_models

NAME = "lever-selector-test"


@pytest.fixture
def log_selector(mlflow_store, tmp_path):
    def log(seed):
        torch.manual_seed(seed)
        selector = PointerSelector(feature_dim=6, hidden_dim=4).eval()
        save_selector(tmp_path / f"checkpoint-{seed}", selector, {"epoch": seed})
        example = pd.DataFrame({"query": [[0.1] * 6], "candidates": [[[0.1] * 6, [0.2] * 6, [0.3] * 6]]})
        with mlflow.start_run():
            model_id = logged_models.log_checkpoint(
                f"grpo-epoch-{seed}", tmp_path / f"checkpoint-{seed}", epoch=seed, params={}, tags={}, example=example
            )
        return model_id, selector

    return log


def aliases():
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(NAME).aliases.items()}


@pytest.mark.parametrize(
    ("beta", "alias"),
    [
        (0.12, "kl-0-12"),
        (0.1234567, "kl-0-1234567"),
        (0.0, "kl-0"),
        (1.0, "kl-1"),
        (1e-5, "kl-1e-05"),
        (1e20, "kl-1e20"),
    ],
)
def test_alias_of_a_beta(beta, alias):
    assert versions.beta_alias(beta) == alias


def test_logged_checkpoint_comes_back_and_predicts(log_selector, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model_id, selector = log_selector(1)
    loaded = load_selector(logged_models.checkpoint_folder(f"models:/{model_id}"))
    assert selector_digest(loaded) == selector_digest(selector)
    generator = torch.Generator().manual_seed(0)
    query, pool = torch.randn(2, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    rows = pd.DataFrame({"query": query.tolist(), "candidates": pool.tolist()})
    result = mlflow.pyfunc.load_model(f"models:/{model_id}").predict(rows, params={"shots": 3})
    assert result["pointer"].tolist() == selector.greedy(query, pool, 3).tolist()
    expected = selector.logprobs(query, pool, selector.greedy(query, pool, 3)[:, None])[:, 0]
    assert result["logprob"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_registering_sets_alias_and_tags(log_selector):
    model_id, selector = log_selector(1)
    version = versions.register(model_id, NAME, 0.12, selector_digest(selector), {"accuracy": "50.00", "epoch": 1})
    registered = MlflowClient().get_model_version_by_alias(NAME, "kl-0-12")
    assert str(registered.version) == version == "1"
    tags = {"kl_beta": "0.12", "accuracy": "50.00", "epoch": "1", "model_digest": selector_digest(selector)}
    assert (registered.tags, list(registered.tags)) == (tags, list(tags))  # in the order in which the UI shows them


def test_a_registered_model_is_described_unless_somebody_has_done_it(log_selector):
    model_id, selector = log_selector(1)
    versions.register(model_id, NAME, 0.12, selector_digest(selector), {})
    for text in ("Selectors.", "Other words."):
        versions.describe_model(NAME, text)
        assert versions.registered_model(NAME).description == "Selectors."


def test_the_same_checkpoint_adds_no_version_and_another_moves_the_alias(log_selector):
    model_id, selector = log_selector(1)
    versions.register(model_id, NAME, 0.12, selector_digest(selector), {"epoch": 1})
    assert versions.register(model_id, NAME, 0.12, selector_digest(selector), {"epoch": 2}) == "1"
    other_id, other = log_selector(2)
    assert versions.register(other_id, NAME, 0.12, selector_digest(other), {"epoch": 2}) == "2"
    assert versions.register(model_id, NAME, 0.12, selector_digest(selector), {"epoch": 1}) == "1"
    assert aliases() == {"kl-0-12": "1"}  # back to the first, without a third version
    versions.register(other_id, NAME, 0.12, selector_digest(other), {"epoch": 2})
    assert aliases() == {"kl-0-12": "2"}


def test_what_is_renewed_and_what_stays(log_selector):
    model_id, selector = log_selector(1)
    digest = selector_digest(selector)
    versions.register(
        model_id,
        NAME,
        0.12,
        digest,
        {"epoch": 1, "gain": "+1", "acc_n40_shots2": "50.00", "gain_over_strongest": "+1", "gate_override": "x" * 9000},
        "card",
    )
    client = MlflowClient()
    by_users = {"reviewed_by": "somebody", "acc_checked": "yes", "baseline_owner": "me", "baseline_n2_mean": "so"}
    for tag, text in by_users.items():
        client.set_model_version_tag(NAME, "1", tag, text)
    client.update_model_version(NAME, "1", "card\n\n## Promotion\n\nChampion since today.")
    versions.register(model_id, NAME, 0.12, digest, {"epoch": 1, "accuracy": "51.00"}, "another card")
    version = client.get_model_version(NAME, "1")
    cut = version.tags.pop("gate_override")
    assert cut == f"{'x' * (5000 - 43)}... (cut; the whole is in evaluation.json)"
    assert version.tags == {
        "epoch": "1",
        "kl_beta": "0.12",
        "model_digest": digest,
        "accuracy": "51.00",
        **by_users,
    }
    assert version.description == "another card\n\n## Promotion\n\nChampion since today."


def test_a_users_tag_that_earlier_versions_of_this_package_had_too_stays(log_selector):
    model_id, selector = log_selector(1)
    versions.register(model_id, NAME, 0.12, selector_digest(selector), {"epoch": 1})
    MlflowClient().set_model_version_tag(NAME, "1", "questions", "asked by me")
    versions.register(model_id, NAME, 0.12, selector_digest(selector), {"epoch": 1})
    assert MlflowClient().get_model_version(NAME, "1").tags["questions"] == "asked by me"


def test_a_checkpoint_registered_twice_at_the_same_time_leaves_one_version(log_selector, monkeypatch):
    """Another evaluation registers the checkpoint between this one's look and its registration."""
    model_id, selector = log_selector(1)
    digest = selector_digest(selector)
    look = versions._version_of_digest

    def overtaken(client, name, number):
        monkeypatch.setattr(versions, "_version_of_digest", look)
        versions.register(model_id, NAME, 0.12, digest, {"epoch": 1})

    monkeypatch.setattr(versions, "_version_of_digest", overtaken)
    assert versions.register(model_id, NAME, 0.12, digest, {"epoch": 1}) == "1"
    assert [str(version.version) for version, _ in versions.versions(NAME)] == ["1"]
    assert aliases() == {"kl-0-12": "1"}


def test_unknown_beta_names_those_that_there_are(log_selector):
    command = "mlflow run . --env-manager local -e evaluate -P kl_beta=0.2"
    with pytest.raises(MissingRunError, match=f"no registered model {NAME}; run `{command}` first"):
        versions.find_version(NAME, 0.2)
    model_id, selector = log_selector(1)
    versions.register(model_id, NAME, 0.12, selector_digest(selector), {})
    with pytest.raises(MissingRunError, match=r"no version with alias kl-0-2 \(it has: kl-0-12\)"):
        versions.find_version(NAME, 0.2)

    assert str(versions.find_version(NAME, 0.12).version) == "1"
    with pytest.raises(MissingRunError, match="no registered model nothing; run `mlflow run"):
        versions.versions("nothing")


def test_a_model_uri_that_leads_nowhere(mlflow_store):
    with pytest.raises(CheckpointError, match="no such model"):
        logged_models.checkpoint_folder("models:/m-0123456789abcdef0123456789abcdef")
