"""The verdicts as a table, and what survived in diff form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ops.lab.mutants.change import Key
from ops.lab.mutants.crew import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file's counts."""

    file: str
    mutants: int
    killed: int
    explained: int

    @property
    def survived(self) -> int:
        """Return how many survived without an explanation."""
        return self.mutants - self.killed - self.explained

    @property
    def score(self) -> float:
        """Return the part killed of all that are not explained, 1 where there is none."""
        judged = self.mutants - self.explained
        return self.killed / judged if judged else 1.0


def rows(verdicts: Sequence[Verdict], explained: Mapping[Key, str]) -> list[Row]:
    """Return a row for each file, and one for all of them."""
    found = [
        _row(file, [one for one in verdicts if one.mutant.file == file], explained)
        for file in dict.fromkeys(one.mutant.file for one in verdicts)
    ]
    return [*found, _row("all", verdicts, explained)]


def _row(file: str, verdicts: Sequence[Verdict], explained: Mapping[Key, str]) -> Row:
    killed = sum(one.killed for one in verdicts)
    excused = sum(not one.killed and one.mutant.key in explained for one in verdicts)
    return Row(file=file, mutants=len(verdicts), killed=killed, explained=excused)


def rendered(verdicts: Sequence[Verdict], explained: Mapping[Key, str]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| file | mutants | killed | survived | explained | score |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows(verdicts, explained):
        # Rounded down: only a whole score is shown as 100 %.
        score = f"{int(row.score * 1000) / 10:.1f} %"
        lines.append(
            f"| {row.file} | {row.mutants} | {row.killed} | {row.survived} | {row.explained} |"
            f" {score} |"
        )
    return "\n".join(lines)


def survivors(verdicts: Sequence[Verdict], explained: Mapping[Key, str]) -> list[Verdict]:
    """Return what survived unexplained, in the order of the files."""
    alive = [one for one in verdicts if not one.killed and one.mutant.key not in explained]
    return sorted(alive, key=lambda one: (one.mutant.file, one.mutant.line, one.mutant.start))


def shown(alive: Sequence[Verdict]) -> Iterator[str]:
    """Yield each survivor: its place, its function, the change."""
    for one in alive:
        note = " (no test runs it)" if one.fate == "unreached" else ""
        yield f"{one.mutant.place} {one.mutant.function or 'top'}{note}\n{one.mutant.diff()}"
