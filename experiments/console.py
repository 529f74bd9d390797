"""What commands print: lines as they are, and errors."""

from rich.console import Console


def say(console: Console, line: str, style: str | None = None) -> None:
    """One line as it is: names of cells look like markup, and a log must not be wrapped."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """One error, to standard error."""
    say(Console(stderr=True), f"error: {message}", style="bold red")
