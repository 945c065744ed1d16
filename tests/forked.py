"""Tests in a process of their own: after fake tensors of CUDA, a backward would spoil every later fork of this one."""

import functools
import multiprocessing


def forked(test):
    """`test` in a fork, which must end with 0; what it says goes to stderr."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        process = multiprocessing.get_context("fork").Process(target=test, args=args, kwargs=kwargs)
        process.start()
        process.join(200)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0

    return run
