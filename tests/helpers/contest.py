"""Several processes that change one champion at the same time."""

import multiprocessing
import os

import mlflow

from lever_mlflow.exceptions import PromotionError
from lever_mlflow.registry import champion
from lever_mlflow.registry.champion import Change, Holders

ROUNDS, PROCESSES = int(os.environ.get("LEVER_CHAMPION_ROUNDS", "3")), 3
PROCESS = multiprocessing.get_context("forkserver")
PROCESS.set_forkserver_preload(["lever_mlflow.registry.champion"])


def model(client, name, versions):
    """Registers a model with so many versions and returns its name."""
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, "s3://nothing/there")
    return name


def everything(client, name):
    """Returns the aliases, and the records of changes that are under way."""
    aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    return aliases, [model.name for model in client.search_registered_models() if model.name.startswith(f"{name}.")]


def to(version, previous=None, **written):
    """Returns the change that makes a version the champion."""
    return Change(version, previous, by=f"test {version}", **written)


def compete(uri, name, rank, barrier, results):
    """In each round all want another version than the one that anybody wanted in the round before."""
    mlflow.set_tracking_uri(uri)
    for number in range(ROUNDS):
        claimed = str(1 + rank + PROCESSES * (number % 2))
        holders = champion.holders(name)
        barrier.wait(100)
        try:
            champion.change(name, holders, to(claimed, holders.champion))
            results.put((number, claimed, holders.champion, "won"))
        except PromotionError as error:
            results.put((number, claimed, holders.champion, str(error)))
        barrier.wait(100)


def contend(uri, client, name):
    """Several processes change a champion at the same time, again and again: one wins each round, and the others see it."""
    model(client, name, 2 * PROCESSES)
    holder = str(2 * PROCESSES)
    champion.change(name, Holders(None, None), to(holder))
    barrier, results = PROCESS.Barrier(PROCESSES), PROCESS.Queue()
    processes = [PROCESS.Process(target=compete, args=(uri, name, rank, barrier, results)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in range(ROUNDS * PROCESSES)]
    for process in processes:
        process.join(30)
    for number in range(ROUNDS):
        of_round = [(version, former_champion, outcome) for of, version, former_champion, outcome in outcomes if of == number]
        (winner,) = (version for version, _, outcome in of_round if outcome == "won")
        assert [former_champion for _, former_champion, _ in of_round] == [holder] * PROCESSES
        assert all(f"version {winner} is champion" in outcome for version, _, outcome in of_round if version != winner)
        former, holder = holder, winner
    assert everything(client, name) == ({"champion": holder, "previous-champion": former}, [])
    assert champion.settle(name) == ROUNDS + 1
