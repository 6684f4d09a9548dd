"""The ids of the source articles, such as TGN-38: each cited id has a row in .github/sources.md, and each row is true.

A row has an id, what the articles ask for, and the tests that show it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SOURCES_FILE = REPOSITORY / ".github" / "sources.md"
N_IDS = {"MAM": 35, "S4": 52, "HYB": 36, "SSF": 15, "TGN": 44, "TRAP": 14}
ID_PATTERN = r"\b(MAM|S4|HYB|SSF|TGN|TRAP)-(\d\d)\b"
CITATION = re.compile(ID_PATTERN + r"((?:(?: to |, | and |/)(?:\1-)?\d\d\b)*)")
ROW = re.compile(r"^\| ((?:MAM|S4|HYB|SSF|TGN|TRAP)-\d\d) \| (.+) \| (.+) \|$", re.MULTILINE)


def evidence_by_id() -> dict[str, str]:
    """Id → last column of its row: the tests that show it, or why there is none."""
    return {name: evidence for name, _, evidence in ROW.findall(SOURCES_FILE.read_text())}


def cited_ids(text: str) -> set[str]:
    """Every id that ``text`` cites; "TGN-21 to 23", "TGN-34, 35" and "MAM-25/26" cite several ids."""
    ids = set()
    for chapter, first, more in CITATION.findall(text):
        numbers = [int(first)]
        for separator, number in re.findall(r"( to |, | and |/)(?:[A-Z0-9]+-)?(\d\d)", more):
            start = numbers[-1] + 1 if separator == " to " else int(number)
            numbers += range(start, int(number) + 1)
        ids |= {f"{chapter}-{number:02d}" for number in numbers}
    return ids


def source_files() -> list[Path]:
    """Every committed text file of the repository that may cite an id."""
    file_list = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    suffixes = {".py", ".md", ".sql", ".toml", ".yaml"}
    return [
        REPOSITORY / name
        for name in file_list.splitlines()
        if Path(name).suffix in suffixes and (REPOSITORY / name).is_file()
    ]


def test_every_chapter_is_complete() -> None:
    expected = {f"{chapter}-{n:02d}" for chapter, count in N_IDS.items() for n in range(1, count + 1)}
    assert set(evidence_by_id()) == expected


def test_every_cited_id_has_a_row() -> None:
    ids_in_table = evidence_by_id()
    unknown = {
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in source_files()
        for name in cited_ids(path.read_text())
        if name not in ids_in_table
    }
    assert not unknown


def test_every_row_names_test_files_that_cite_its_id_or_says_why_there_are_none() -> None:
    faults = []
    for name, evidence in evidence_by_id().items():
        files = [file for file in re.findall(r"`([^`]+)`", evidence) if file.startswith("tests/")]
        if not files and "*open*" not in evidence and "*reference*" not in evidence:
            faults.append(f"{name} names no test")
        for file in files:
            path = REPOSITORY / file
            if not path.is_file() or name not in cited_ids(path.read_text()):
                faults.append(f"{name}: {file} is missing or does not cite it")
    assert not faults


def test_ranges_and_lists_of_ids_are_read_as_citations_of_every_id() -> None:
    assert cited_ids("TGN-34 to 37, MAM-25/26; S4-44 and 47 (HYB-31 to HYB-33)") == {
        *("TGN-34", "TGN-35", "TGN-36", "TGN-37", "MAM-25", "MAM-26", "S4-44", "S4-47", "HYB-31", "HYB-32", "HYB-33"),
    }
    assert cited_ids("MATH-01 or S4D") == set()
