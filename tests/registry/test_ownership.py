"""Registered models that are shared with others: versions, aliases and tags of theirs beside ours."""

import pytest
from mlflow import MlflowClient

from lever_mlflow.exceptions import MissingRunError, ParameterError
from lever_mlflow.registry import listing, ownership, versions
from lever_mlflow.registry.listing import ListedVersion

NAME = "shared"
HERE = {"dataset_digest": "d1", "vlm_digest": "v1", "encoder_digest": "e1", "profile_digest": "p1"}
WANTED = "dataset=d1,vlm=v1,encoder=e1,profile=p1"


@pytest.fixture
def client(mlflow_store):
    return MlflowClient()


def add(client, tags, alias=""):
    """Adds a version with these tags to the shared model, and returns its number."""
    version = client.create_model_version(NAME, "s3://nothing/there", tags=tags)
    if alias:
        client.set_registered_model_alias(NAME, alias, version.version)
    return str(version.version)


def ours(beta="0.12", **tags):
    return {"kl_beta": beta, "model_digest": "m", "evaluation_run": "r", **tags}


def test_what_a_model_is_made_for_is_recorded_once_and_kept(client):
    assert ownership.made_for(HERE) == WANTED
    ownership.claim(NAME, WANTED)
    ownership.claim(NAME, WANTED)
    assert client.get_registered_model(NAME).tags["made_for"] == WANTED


@pytest.mark.parametrize("kind", ["dataset", "vlm", "encoder", "profile"])
def test_versions_of_something_else_are_not_registered(client, kind):
    ownership.claim(NAME, WANTED)
    other = ownership.made_for({**HERE, f"{kind}_digest": "other"})
    message = (
        f"model_name={NAME}: that registered model was made for another {kind} .digest {kind[0]}1, not other.; give another"
    )
    with pytest.raises(ParameterError, match=message):
        ownership.claim(NAME, other)
    with pytest.raises(ParameterError, match=message):
        versions.register("m-1", NAME, 0.12, "m", {"made_for": other})
    assert client.search_model_versions(f"name = '{NAME}'") == []
    assert client.get_registered_model(NAME).aliases == {}


def test_a_model_of_somebody_else_is_left_alone(client):
    client.create_registered_model(NAME)
    ownership.claim(NAME, WANTED)  # an empty one, as somebody with the right to do so may make it
    client.delete_registered_model_tag(NAME, "made_for")
    add(client, {"flavour": "sklearn"})
    with pytest.raises(ParameterError, match="holds versions of others only; give another model_name"):
        ownership.claim(NAME, WANTED)
    add(client, ours())
    ownership.claim(NAME, WANTED)  # made by an earlier version of this package


@pytest.mark.parametrize(
    "tags", [{}, {"kl_beta": "strong", "model_digest": "m"}, {"kl_beta": "0.12"}, {"kl_beta": "nan", "model_digest": "m"}]
)
def test_an_alias_on_a_version_of_somebody_else(client, tags):
    ownership.claim(NAME, WANTED)
    number = add(client, tags, alias="kl-0-12")
    with pytest.raises(MissingRunError, match=f"{NAME} version {number}: no evaluation of this project registered it"):
        versions.find_version(NAME, 0.12)


def test_an_alias_on_a_version_of_another_beta_or_data_set(client):
    ownership.claim(NAME, WANTED)
    number = add(client, ours("0.15", made_for=WANTED), alias="kl-0-12")
    with pytest.raises(MissingRunError, match=f"{NAME} version {number} has the alias kl-0-12, but beta 0.15; run `"):
        versions.find_version(NAME, 0.12)
    number = add(client, ours(made_for=WANTED.replace("d1", "d2")), alias="kl-0-12")
    with pytest.raises(
        MissingRunError, match=f"{NAME} version {number} was made for another dataset .digest d2, not d1.; move the"
    ):
        versions.find_version(NAME, 0.12)
    number = add(client, ours(), alias="kl-0-12")  # of an earlier version of this package
    assert str(versions.find_version(NAME, 0.12).version) == number


def test_betas_that_differ_in_the_seventh_digit_are_two(client):
    assert versions.beta_alias(0.1234567) == "kl-0-1234567"
    assert versions.beta_alias(0.1234568) == "kl-0-1234568"
    client.create_registered_model(NAME)
    first = add(client, ours("0.123457"), alias="kl-0-1234567")  # the tag as earlier versions of this package wrote it
    second = add(client, ours("0.1234568"), alias="kl-0-1234568")
    assert [str(versions.find_version(NAME, beta).version) for beta in (0.1234567, 0.1234568)] == [first, second]


def test_versions_of_somebody_else_are_listed_without_figures(client):
    client.create_registered_model(NAME)
    add(client, {"kl_beta": "strong", "accuracy": "all of them"}, alias="mine")
    add(client, ours(accuracy="51.00"))
    rows = [ListedVersion(version, aliases, None) for version, aliases in versions.versions(NAME)]
    table = listing.table(NAME, rows).splitlines()
    assert [line.split()[:4] for line in table[2:]] == [["0.12", "2", "-", "-"], ["-", "1", "mine", "-"]]
    assert "all of them" not in "\n".join(table)
