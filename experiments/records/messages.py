"""What commands say: how they end, and names from outside in a line."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

SHOWN = 20  # problems, ids or names that one message spells out; the rest are counted


class IncompleteError(RuntimeError):
    """A part of the work failed, and the rest is done; the message counts."""


def ended(work: Callable[[], int], *, begun: Path | None = None, quiet: bool = False) -> int:
    """The exit status of a command that does the work, which gives it: 1 where a part failed, 2 for bad input, 130 when
    interrupted.

    begun: a file that is there once there is something that the same command continues. quiet: another process says
    why.
    """

    def there(words: str) -> str:
        return words if begun is not None and os.path.exists(begun) else ""

    status = 2
    try:
        return work()
    except IncompleteError as error:
        status, message = 1, f"error: {error}"
    except (ValueError, ImportError) as error:
        message = f"error: {error}"
    except OSError as error:
        message = f"error: {error}{there('; what is finished is kept, and the same command continues after it')}"
    except KeyboardInterrupt:
        status, message = 130, f"interrupted{there('; the same command continues where it stopped')}"
    if not quiet:
        print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return status


def printable(text: str) -> str:
    """The text with escapes for what is not printable, such as bytes of a file's name that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(items: Sequence[str]) -> list[str]:
    """The first SHOWN items and how many more there are."""
    return [*items[:SHOWN], *([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else [])]
