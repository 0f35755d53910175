"""Batches in several threads: order, errors, interruption, and PyTorch's number of threads."""

import _thread
import signal
import threading
import time

import pytest
import torch

from lever_mlflow.vlm.threads import copies, in_threads


@pytest.fixture(autouse=True)
def three_threads():
    """PyTorch has 3 threads, and still has them after the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 3


def test_results_come_in_order_from_models_that_no_two_threads_share():
    busy, together, counts = set(), threading.Barrier(3, timeout=60), set()

    def work(model, item):
        assert model not in busy
        busy.add(model)
        together.wait()  # only three threads at the same time come past this
        time.sleep(0.002 * (item % 3))
        counts.add(torch.get_num_threads())
        busy.discard(model)
        return 10 * item

    assert list(in_threads(work, iter(range(12)), ["a", "b", "c"])) == [10 * item for item in range(12)]
    assert counts == {1}


def test_one_model_stays_in_the_calling_thread_with_all_threads_of_an_operation():
    def work(model, item):
        return (model, item, threading.get_ident(), torch.get_num_threads())

    here = threading.get_ident()
    assert list(in_threads(work, [1, 2], ["a"])) == [("a", 1, here, 3), ("a", 2, here, 3)]


def test_items_are_made_in_the_calling_thread_and_not_far_ahead():
    makers = []

    def items():
        for item in range(20):
            makers.append(threading.get_ident())
            yield item

    results = in_threads(lambda model, item: item, items(), ["a", "b"])
    assert next(results) == 0
    assert makers == [threading.get_ident()] * 4
    results.close()


def test_an_error_comes_in_its_place_and_ends_the_work():
    begun = []

    def work(model, item):
        begun.append(item)
        if item == 2:
            raise ValueError(f"item {item}")
        return item

    results = in_threads(work, range(100), ["a", "b"])
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(results)
    assert set(begun) <= set(range(6))


@pytest.fixture
def interruptible():
    """Lets an interrupt end the test, also where the tests run in the background, whose processes ignore interrupts."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_work():
    begun = []

    def work(model, item):
        begun.append(item)
        if item == 1:
            _thread.interrupt_main()  # as Ctrl-C does
        if item > 0:
            time.sleep(0.2)
        return item

    with pytest.raises(KeyboardInterrupt):
        list(in_threads(work, range(100), ["a", "b"]))
    assert max(begun) < 8


def test_copies_share_weights_and_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    first, second, third = copies(model, 3)
    assert first is model
    assert len({id(part) for part in (first, second, third)}) == 3
    for copied in (second, third):
        assert [id(weight) for weight in copied.parameters()] == [id(weight) for weight in model.parameters()]
        assert copied[1].running_mean is not model[1].running_mean
        assert torch.equal(copied[1].running_mean, model[1].running_mean)
