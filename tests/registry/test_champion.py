"""Changes of the champion by several real processes at once, by killed ones, and by those that come after them."""

import logging
import os
import re
import signal

import mlflow
import pytest
from helpers.contest import PROCESS, ROUNDS, contend, everything, model, to
from helpers.servers import Server
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lever_mlflow import process_identity
from lever_mlflow.exceptions import MissingRunError, ParameterError, PromotionError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.registry import champion
from lever_mlflow.registry.champion import Holders


@pytest.fixture(scope="module")
def store(make_store, tmp_path_factory):
    """URI of the store that all tests of this file share; each has a model of its own there."""
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def client(store):
    mlflow.set_tracking_uri(store)
    return MlflowClient()


@pytest.fixture
def server(store, tmp_path):
    """A tracking server on that store."""
    server = Server(tmp_path, store=store, workers=2)
    server.start()
    yield server
    server.kill()


def test_changes_one_after_another(client):
    name = model(client, "one-by-one", 3)
    assert champion.holders(name) == Holders(None, None)
    with pytest.raises(MissingRunError, match="there is no champion, and there is no other version to go back to"):
        champion.rollback(name, "test")
    champion.change(name, Holders(None, None), to("1"))
    assert champion.holders(name) == Holders("1", None)
    champion.change(name, Holders("1", None), to("2", "1", tags={"why": "better"}, description="a card"))
    assert everything(client, name) == ({"champion": "2", "previous-champion": "1"}, [])
    version = client.get_model_version(name, "2")
    assert (version.tags, version.description) == ({"why": "better"}, "a card")
    assert champion.rollback(name, "test") == Holders("1", "2")
    record = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00, in place of version 2, by test"
    assert re.fullmatch(record, client.get_model_version(name, "1").tags["restored"])
    assert champion.rollback(name, "test") == champion.holders(name) == Holders("2", "1")
    assert champion.settle(name) == 4
    with pytest.raises(MissingRunError, match="no registered model nothing"):
        champion.rollback("nothing", "test")


def test_a_decision_on_aliases_that_have_changed_is_refused(client):
    name = model(client, "changed", 3)
    champion.change(name, Holders(None, None), to("1"))
    with pytest.raises(PromotionError, match="version 1 is champion, but there is no champion when this began"):
        champion.change(name, Holders(None, None), to("2"))
    client.set_registered_model_alias(name, "champion", "3")  # by hand
    with pytest.raises(PromotionError, match="version 3 is champion, but version 1 is champion when this began"):
        champion.change(name, Holders("1", None), to("2", "1"))
    assert everything(client, name) == ({"champion": "3"}, [])


@pytest.mark.slow
def test_of_several_at_once_one_wins_and_the_others_see_it(server, client):
    contend(server.uri, client, "contended")


WRITES = (
    "create_registered_model",
    "set_model_version_tag",
    "update_model_version",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model",
)
CALLS = 8  # of these, that a promotion with one tag makes: it confirms the change, sets two aliases, counts the change


def killed_before(uri, name, call, change):
    """Makes a change, and is killed before its n-th write."""
    mlflow.set_tracking_uri(uri)
    calls = []

    def counting(function):
        def run(*arguments, **keywords):
            calls.append(function)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return run

    for write in WRITES:
        setattr(MlflowClient, write, counting(getattr(MlflowClient, write)))
    champion.change(name, champion.holders(name), change)


def start_and_kill(store, name, call, change):
    process = PROCESS.Process(target=killed_before, args=(store, name, call, change))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_change_is_finished_by_the_next_one(store, client, monkeypatch, caplog):
    """Killed before one of its writes, of all with ``LEVER_CHAMPION_ROUNDS`` above 3; then a rollback or a promotion."""
    caplog.set_level(logging.WARNING, logger="lever_mlflow")
    name = model(client, "killed", 3)
    champion.change(name, Holders(None, None), to("1"))
    champion.change(name, Holders("1", None), to("2", "1"))
    for call in range(1, CALLS + 1) if ROUNDS > 3 else (2, 3, 5, 6, 8):
        caplog.clear()
        old = champion.holders(name)
        (new,) = {"1", "2", "3"} - set(old)
        n_changes = champion.settle(name)
        start_and_kill(store, name, call, to(new, old.champion, tags={"why": f"kill {call}"}, description=f"card {call}"))
        assert champion.holders(name) in (old, Holders(old.champion, old.champion), Holders(new, old.champion))
        with monkeypatch.context() as patch:
            patch.setattr(champion, "PATIENCE", 0.3)
            assert champion.settle(name) == n_changes + (call > 1)
        assert (f"passing over change {n_changes + 1} of champion, begun by test {new}" in caplog.text) == (call == 2)
        assert (f"finishing change {n_changes + 1} of champion, begun by test {new}" in caplog.text) == (2 < call < CALLS)
        holders = Holders(new, old.champion) if call > 2 else old
        assert champion.holders(name) == holders
        version = client.get_model_version(name, new)
        assert (version.tags.get("why"), version.description or None) == (
            (f"kill {call}", f"card {call}") if call > 2 else (None, None)
        )
        assert everything(client, name)[1] == []
        if call % 2:
            assert champion.rollback(name, "test") == Holders(holders.previous, holders.champion)
        else:
            (third,) = {"1", "2", "3"} - set(holders)
            champion.change(name, holders, to(third, holders.champion))
            assert champion.holders(name) == Holders(third, holders.champion)


@pytest.mark.slow
def test_a_change_to_a_version_that_somebody_deletes_blocks_nothing(store, client, monkeypatch, caplog):
    name = model(client, "deleted", 3)
    champion.change(name, Holders(None, None), to("1"))
    start_and_kill(store, name, 3, to("2", "1", tags={"why": "better"}))
    client.delete_model_version(name, "2")
    with monkeypatch.context() as patch:
        patch.setattr(champion, "PATIENCE", 0.3)
        champion.settle(name)
    assert everything(client, name) == ({"champion": "1", "previous-champion": "1"}, [])
    with pytest.raises(MissingRunError, match="no other version to go back to"):
        champion.rollback(name, "test")
    champion.change(name, Holders("1", "1"), to("3", "1"))
    assert champion.holders(name) == Holders("3", "1")


def test_the_record_of_a_change_whose_process_was_killed_at_the_very_end_is_deleted_by_the_next_one(client, monkeypatch):
    name = model(client, "last", 2)
    with monkeypatch.context() as patch:
        patch.setattr(champion, "_remove", lambda *_: None)
        champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({"champion": "1"}, ["last.champion-change-1"])
    assert champion.settle(name) == 1
    assert everything(client, name) == ({"champion": "1"}, [])


@pytest.mark.parametrize("gone", [True, False])
def test_an_interrupted_rollback_is_finished_and_not_taken_back(client, monkeypatch, gone):
    """It ended between two writes; where its process can be seen to be gone, nobody waits for it for long."""
    name = model(client, f"back-{gone}", 2)
    champion.change(name, Holders(None, None), to("1"))
    champion.change(name, Holders("1", None), to("2", "1"))
    assert champion.finish_rollback(name) is None
    with monkeypatch.context() as patch:
        patch.setattr(champion, "_finish", lambda *_: None)
        champion.rollback(name, "test")
    assert champion.holders(name) == Holders("2", "1")
    with monkeypatch.context() as patch:
        patch.setattr(champion, "is_there", lambda process: {process_identity.this_process(): not gone}[process])
        patch.setattr(champion, "_OF_GONE" if gone else "PATIENCE", 0.2)
        assert champion.finish_rollback(name) == champion.holders(name) == Holders("1", "2")
    assert champion.finish_rollback(name) is None
    assert champion.rollback(name, "test") == Holders("2", "1")


def test_a_rollback_says_what_it_did_before_it_can_no_longer_be_finished_by_another(client, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="lever_mlflow")
    name = model(client, "said", 2)
    champion.change(name, Holders(None, None), to("1"))
    champion.change(name, Holders("1", None), to("2", "1"))
    messages = []
    monkeypatch.setattr(champion, "_remove", lambda *_: messages.append(list(caplog.messages)))
    champion.rollback(name, "test")
    assert messages == [["said: version 1 is champion again, version 2 previous-champion"]]


def test_a_process_that_was_taken_for_dead_writes_no_more(client, monkeypatch):
    name = model(client, "slow", 2)
    begin = champion._begin
    with monkeypatch.context() as patch:

        def slowly(*arguments):
            begun = begin(*arguments)
            patch.setattr(champion, "PATIENCE", 0.0)
            return begun

        patch.setattr(champion, "_begin", slowly)
        message = "MLflow took too long; this change is finished by the next promote or rollback"
        with pytest.raises(PromotionError, match=message):
            champion.change(name, Holders(None, None), to("1"))
        assert everything(client, name) == ({}, ["slow.champion-change-1"])
        champion.settle(name)
    assert everything(client, name) == ({"champion": "1"}, [])


def test_an_answer_that_got_lost_is_no_obstacle(client, monkeypatch):
    """The client sends a request again whose answer it did not get: the record exists then, by its own hand."""
    name = model(client, "lost", 2)
    create = MlflowClient.create_registered_model

    def twice(self, *arguments, **keywords):
        create(self, *arguments, **keywords)
        return create(self, *arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "create_registered_model", twice)
    champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({"champion": "1"}, [])


def test_a_late_start_on_a_change_that_has_ended_begins_another(client, monkeypatch):
    """Change 1 is made by somebody else, whole, between this process' look and its beginning."""
    name = model(client, "late", 2)
    begin = champion._begin

    def late(*arguments):
        monkeypatch.setattr(champion, "_begin", begin)
        champion.change(name, Holders(None, None), to("1"))
        return begin(*arguments)

    monkeypatch.setattr(champion, "_begin", late)
    with pytest.raises(PromotionError, match="version 1 is champion, but there is no champion when this began"):
        champion.change(name, Holders(None, None), to("2"))
    assert everything(client, name) == ({"champion": "1"}, [])


def test_who_may_not_edit_the_model_leaves_nothing_behind(client, monkeypatch):
    name = model(client, "forbidden", 2)

    def refuse(*arguments):
        raise MlflowException("Permission denied", error_code=7)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_tag", refuse)
        with pytest.raises(MlflowException, match="Permission denied"):
            champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({}, [])


def test_a_change_that_somebody_without_the_right_made_up_is_passed_over(client, monkeypatch, caplog):
    name = model(client, "made-up", 2)
    client.set_registered_model_tag(name, "champion_change", "0 made up")  # as of an earlier change, read off the model
    tags = {"token": "made up", "by": "somebody", "champion": "2", "previous": "", "lever.champion_change_of": name}
    client.create_registered_model(f"{name}.champion-change-1", tags=tags)
    with monkeypatch.context() as patch:
        patch.setattr(champion, "PATIENCE", 0.3)
        assert champion.settle(name) == 1
    assert "passing over change 1 of champion, begun by somebody" in caplog.text
    assert everything(client, name) == ({}, [])
    champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({"champion": "1"}, [])


def test_models_that_somebody_keeps_under_the_names_of_records_stay(client, caplog):
    """Without our tag, with another record's tag, and among the changes to come; each with a version in it."""
    name = model(client, "b", 3)
    user_models = [model(client, f"b.champion-change-{number}", 1) for number in (1, 2, 4)]
    client.set_registered_model_tag(user_models[1], "lever.champion_change_of", "another")
    client.set_registered_model_tag(user_models[0], "token", "of somebody")
    champion.change(name, Holders(None, None), to("1"))
    assert f"b: {user_models[0]} is somebody's registered model and stays; the next number is taken" in caplog.messages
    champion.change(name, Holders("1", None), to("2", "1"))
    assert champion.rollback(name, "test") == Holders("1", "2")
    assert champion.settle(name) == 6
    assert everything(client, name) == ({"champion": "1", "previous-champion": "2"}, user_models)
    for model_name in user_models:
        assert [version.version for version in client.search_model_versions(f"name = '{model_name}'")] == [1]


def test_a_model_that_takes_the_name_of_a_record_at_the_last_moment_stays(client, monkeypatch):
    name = model(client, "moment", 2)
    begin = champion._begin

    def late(*arguments):
        monkeypatch.setattr(champion, "_begin", begin)
        model(client, "moment.champion-change-1", 1)
        return begin(*arguments)

    monkeypatch.setattr(champion, "_begin", late)
    champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({"champion": "1"}, ["moment.champion-change-1"])


def test_a_version_that_somebody_puts_into_a_record_stays(client, monkeypatch, caplog):
    name = model(client, "into", 2)
    write = champion._write

    def put(*arguments):
        client.create_model_version("into.champion-change-1", "s3://nothing/there")
        write(*arguments)

    monkeypatch.setattr(champion, "_write", put)
    champion.change(name, Holders(None, None), to("1"))
    assert everything(client, name) == ({"champion": "1"}, ["into.champion-change-1"])
    assert "into.champion-change-1 has versions that somebody put there, so it stays; it has no effect" in caplog.text
    monkeypatch.setattr(champion, "_write", write)
    champion.change(name, Holders("1", None), to("2", "1"))
    assert champion.holders(name) == Holders("2", "1")


def test_a_users_tag_of_the_name_that_counts_changes_is_named(client):
    name = model(client, "tagged", 1)
    client.set_registered_model_tag(name, "champion_changes", "many")
    with pytest.raises(PromotionError, match="tagged: the tag champion_changes of this registered model is 'many', expected"):
        champion.change(name, Holders(None, None), to("1"))


def test_a_model_that_could_be_taken_for_a_record_is_refused_by_name():
    with pytest.raises(ParameterError, match=r"model_name='b\.champion-change-1': names that end so are those of records"):
        Context(Resources(), model_name="b.champion-change-1")
    assert Context(Resources(), model_name="b.champion-change-x").registered_name == "b.champion-change-x"
