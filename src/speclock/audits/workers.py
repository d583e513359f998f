"""Processes that attack side by side: each with its share of the cores, and a GPU of its own where there are any."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized

import torch

from speclock.environment import keep_freed_memory


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``jobs`` fresh processes, gone when the block ends, however it ends."""
    # Forked processes inherit locks that OpenMP and CUDA hold; spawned ones start clean.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    number = context.Value("i", 0)
    pool = ProcessPoolExecutor(jobs, context, _begin, (number, threads, torch.cuda.device_count()))
    try:
        yield pool
    except BaseException:
        # Not after the run that each is in: that may take minutes, and nobody waits for it any more.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(number: Synchronized[int], threads: int, gpus: int) -> None:
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    if gpus:
        # Before CUDA starts in this process: the loop takes the first device that it sees.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[mine % gpus]
    torch.set_num_threads(threads)
    keep_freed_memory()
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()


def _die_with_parent(parent: int) -> None:
    """A killed audit must not leave workers behind that go on writing its runs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
