"""A process that is killed in the middle of its work."""

DYING = """
import os, signal, sys

calls, die_at = 0, int(sys.argv[1])

def dying(function):
    def call(*args, **keywords):
        global calls
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*args, **keywords)
    return call
"""
"""The beginning of a program whose n-th call of any function passed through `dying` is where it dies; n is its first
argument."""
