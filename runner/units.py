"""Numbers as people read them."""

_UNITS = ("KiB", "MiB", "GiB")


def size_shown(value: int) -> str:
    """Write a number of bytes in a few characters: ``512 B``, ``26.3 MiB``."""
    if value < 1 << 10:
        return f"{value} B"
    number, step = value / (1 << 10), 0
    while number >= 999.95 and step < len(_UNITS) - 1:  # it would be shown with four digits
        number, step = number / (1 << 10), step + 1
    return f"{number:.1f} {_UNITS[step]}"
