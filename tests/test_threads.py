"""Two threads of one process that evaluate, load and isolate at once: what is put back is shared by them."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import robustdup
from robustdup import isolated
from robustdup.plugins.exits import no_exits

ENDING = os.kill


def test_two_evaluations_at_once_have_the_results_of_one_after_the_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    images, labels = torch.rand(40, 1, 3, 3), torch.arange(40) % 3
    both = threading.Barrier(2)

    def evaluate(wait):
        if wait:
            both.wait()
        return robustdup.evaluate(model, images, labels, eps="0.1", attacks="pgd(steps=3)", progress=False)

    alone = evaluate(wait=False)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(evaluate, [True, True]))
    for result in results:
        assert torch.equal(result.adv_images, alone.adv_images)
        assert result.record.events == alone.record.events
    assert os.kill is ENDING


def test_blocks_without_exits_that_overlap_leave_the_names_as_they_were():
    first, second = no_exits(), no_exits()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.kill is not ENDING  # the second one is still in
    second.__exit__(None, None, None)
    assert os.kill is ENDING


def test_one_thread_at_a_time_is_isolated():
    inside, seen = threading.Event(), []

    def isolate():
        inside.wait()
        with isolated():
            seen.append("second")

    second = threading.Thread(target=isolate)
    second.start()
    state = torch.get_rng_state()
    with isolated(seed=3), isolated(seed=4):  # as often as one likes in one thread
        inside.set()
        second.join(0.2)
        seen.append("first")
    second.join()
    assert seen == ["first", "second"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_process_that_is_forked_while_a_thread_is_isolated_does_not_wait_for_it():
    inside, leave = threading.Event(), threading.Event()

    def isolate():
        with isolated():
            inside.set()
            leave.wait()

    def in_child():
        with isolated(seed=1):
            os._exit(7)

    thread = threading.Thread(target=isolate)
    thread.start()
    inside.wait()
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(30)
    leave.set()
    thread.join()
    code = child.exitcode
    child.kill()
    assert code == 7
