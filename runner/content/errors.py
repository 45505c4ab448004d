"""The one exception of the decoders: bytes or text that do not have the form they must have."""


class ContentError(ValueError):
    """Malformed content: a CID, a block, a directory or a file that breaks its format's rules.

    Its text says which rule was broken, without a place: whoever asked knows the CID or the path
    and turns this into a :class:`runner.errors.WwError` that names it.
    """
