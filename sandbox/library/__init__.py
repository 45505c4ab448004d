"""The library: running cells from a Python program, with results in its memory.

Everything that a program uses is named in :mod:`sandbox`, which imports these modules when it is
asked for a name of theirs.
"""
