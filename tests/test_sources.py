"""Every id of the source articles that the repository cites has a row in .github/sources.md, and every row holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / ".github" / "sources.md"
COUNTS = {"MAM": 35, "S4": 52, "HYB": 36, "SSF": 15, "TGN": 44, "TRAP": 14}
ID = r"\b(MAM|S4|HYB|SSF|TGN|TRAP)-(\d\d)\b"
CITATION = re.compile(ID + r"((?:(?: to |, | and |/)(?:\1-)?\d\d\b)*)")
ROW = re.compile(r"^\| ((?:MAM|S4|HYB|SSF|TGN|TRAP)-\d\d) \| (.+) \| (.+) \|$", re.MULTILINE)


def rows() -> dict[str, str]:
    """The last column of each row of the table, by id."""
    return {row: shown_by for row, _, shown_by in ROW.findall(TABLE.read_text())}


def cited_ids(text: str) -> set[str]:
    """Every id in ``text``; "TGN-21 to 23", "TGN-34, 35" and "MAM-25/26" cite each of theirs."""
    ids = set()
    for chapter, first, more in CITATION.findall(text):
        numbers = [int(first)]
        for separator, number in re.findall(r"( to |, | and |/)(?:[A-Z0-9]+-)?(\d\d)", more):
            start = numbers[-1] + 1 if separator == " to " else int(number)
            numbers += range(start, int(number) + 1)
        ids |= {f"{chapter}-{number:02d}" for number in numbers}
    return ids


def source_files() -> list[Path]:
    """Every text file of the repository that may cite an id."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    kinds = {".py", ".md", ".sql", ".toml", ".yaml"}
    return [
        REPOSITORY / name
        for name in listed.splitlines()
        if Path(name).suffix in kinds and (REPOSITORY / name).is_file()
    ]


def test_every_chapter_is_complete() -> None:
    expected = {f"{chapter}-{n:02d}" for chapter, count in COUNTS.items() for n in range(1, count + 1)}
    assert set(rows()) == expected


def test_every_cited_id_has_a_row() -> None:
    known = rows()
    unknown = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in source_files()
        for name in cited_ids(path.read_text())
        if name not in known
    }
    assert not unknown


def test_every_row_names_a_file_that_cites_it_or_says_why_not() -> None:
    wrong = []
    for name, shown_by in rows().items():
        files = [file for file in re.findall(r"`([^`]+)`", shown_by) if file.startswith("tests/")]
        if not files and "*open*" not in shown_by and "*reference*" not in shown_by:
            wrong.append(f"{name} names no test")
        for file in files:
            path = REPOSITORY / file
            if not path.is_file() or name not in cited_ids(path.read_text()):
                wrong.append(f"{name}: {file} is missing or does not cite it")
    assert not wrong


def test_citations_are_read_as_people_write_them() -> None:
    assert cited_ids("TGN-34 to 37, MAM-25/26; S4-44 and 47 (HYB-31 to HYB-33)") == {
        *("TGN-34", "TGN-35", "TGN-36", "TGN-37", "MAM-25", "MAM-26", "S4-44", "S4-47", "HYB-31", "HYB-32", "HYB-33"),
    }
    assert cited_ids("MATH-01 or S4D") == set()
