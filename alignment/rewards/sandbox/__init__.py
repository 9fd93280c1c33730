"""Runs programs that a model wrote, in an operating-system sandbox and in no other way.

:mod:`run` starts and watches, :mod:`backend` finds out what isolates here, :mod:`namespaces` and bubblewrap are the
two that can, and :mod:`confine` is what a sandboxed process does to itself before the program's first line.
"""
