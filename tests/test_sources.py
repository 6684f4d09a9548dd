"""Requirement ids such as TGN-38: each cited id has a row in .github/sources.md, and the tests in a row cite its id.

A row has three columns: an id, the requirement of the source articles, and the tests that show it. The letters of an id
name a chapter (MAM, S4, HYB, SSF, TGN, TRAP).
"""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SOURCES_FILE = REPOSITORY / ".github" / "sources.md"
N_IDS = {"MAM": 35, "S4": 52, "HYB": 36, "SSF": 15, "TGN": 44, "TRAP": 14}
ID_PATTERN = r"\b(MAM|S4|HYB|SSF|TGN|TRAP)-(\d\d)\b"
CITATION = re.compile(ID_PATTERN + r"((?:(?: to |, | and |/)(?:\1-)?\d\d\b)*)")
ROW = re.compile(r"^\| ((?:MAM|S4|HYB|SSF|TGN|TRAP)-\d\d) \| (.+) \| (.+) \|$", re.MULTILINE)


def evidence_by_id() -> dict[str, str]:
    """Id → last column of its row: the tests that show the requirement, or the reason why there is none."""
    return {source_id: evidence for source_id, _, evidence in ROW.findall(SOURCES_FILE.read_text())}


def cited_ids(text: str) -> set[str]:
    """Every id that ``text`` cites; "TGN-21 to 23", "TGN-34, 35" and "MAM-25/26" cite several ids."""
    ids = set()
    for chapter, first_number, more_numbers in CITATION.findall(text):
        numbers = [int(first_number)]
        for separator, number in re.findall(r"( to |, | and |/)(?:[A-Z0-9]+-)?(\d\d)", more_numbers):
            start = numbers[-1] + 1 if separator == " to " else int(number)
            numbers += range(start, int(number) + 1)
        ids |= {f"{chapter}-{number:02d}" for number in numbers}
    return ids


def source_files() -> list[Path]:
    """Every text file of the repository that may cite an id."""
    folders = ("flows", "tasks", "models", "warehouse", "tests", ".github")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    suffixes = {".py", ".md", ".sql", ".toml", ".yaml"}
    return [path for path in [*files, *REPOSITORY.glob("*")] if path.suffix in suffixes]


def test_every_chapter_is_complete() -> None:
    expected = {f"{chapter}-{n:02d}" for chapter, count in N_IDS.items() for n in range(1, count + 1)}
    assert set(evidence_by_id()) == expected


def test_every_cited_id_has_a_row() -> None:
    ids_in_table = evidence_by_id()
    unknown = {
        f"{path.relative_to(REPOSITORY)}: {source_id}"
        for path in source_files()
        for source_id in cited_ids(path.read_text())
        if source_id not in ids_in_table
    }
    assert not unknown


def test_every_row_names_test_files_that_cite_its_id_or_says_why_there_are_none() -> None:
    faults = []
    for source_id, evidence in evidence_by_id().items():
        files = [file for file in re.findall(r"`([^`]+)`", evidence) if file.startswith("tests/")]
        if not files and "*open*" not in evidence and "*reference*" not in evidence:
            faults.append(f"{source_id} names no test")
        for file in files:
            path = REPOSITORY / file
            if not path.is_file() or source_id not in cited_ids(path.read_text()):
                faults.append(f"{source_id}: {file} is missing or does not cite it")
    assert not faults


def test_a_range_or_list_of_ids_cites_every_id_in_it() -> None:
    assert cited_ids("TGN-34 to 37, MAM-25/26; S4-44 and 47 (HYB-31 to HYB-33)") == {
        *("TGN-34", "TGN-35", "TGN-36", "TGN-37", "MAM-25", "MAM-26", "S4-44", "S4-47", "HYB-31", "HYB-32", "HYB-33"),
    }
    assert cited_ids("MATH-01 or S4D") == set()
