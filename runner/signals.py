"""The module :mod:`signal`, or what it is made of.

Its enumerations take a millisecond and a half to make, which is much of what a run takes, and
nothing here looks at them. What they are made from are plain numbers, and the functions are the
same.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    try:
        import _signal as signal
    except ImportError:
        import signal

__all__ = ["signal"]
