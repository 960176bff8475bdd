"""The one error a user can mend: which file, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Sequence


class SamnnError(Exception):
    """Something the user can mend. The message names the file, says what is wrong and what to do.

    The command line prints the message without a traceback and exits with code 1.
    """


class Problems(SamnnError):
    """Several mendable problems found together, so that they are reported at once and not one per run."""

    def __init__(self, headline: str, problems: Sequence[str]) -> None:
        super().__init__(headline, list(problems))  # both arguments: an error of a worker process is pickled
        self.headline = headline
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"  - {problem}" for problem in self.problems)])
