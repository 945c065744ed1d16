"""Shows people which tokens of a row bear loss."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text


def show(example: Sequence[tuple[str, bool]], console: Console) -> None:
    """Print a row given as stretches of (text, bears loss): in colour on a terminal, else between ⟦ and ⟧."""
    text = Text()
    for stretch, bears in example:
        if console.is_terminal:
            text.append(stretch, style="bold green" if bears else "dim")
        else:
            text.append(f"⟦{stretch}⟧" if bears else stretch)
    console.print(text, soft_wrap=True)
