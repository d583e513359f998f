"""The page as a reader, a browser and a hostile task name meet it."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from speclock.errors import InputError
from speclock.report import render, write

Record = dict[str, Any]

SECTIONS = ["verdict", "figures", "scores", "sweep", "spectra", "utility", "flags", "runs", "data", "again"]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements in order, ids, text, and whether every tag is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def having(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(attribute)) is not None]


def test_every_section_is_there_in_order(page: str) -> None:
    assert [name for name in Page(page).having("id") if name in SECTIONS] == SECTIONS


def test_the_verdict_comes_first_and_is_tempered(record: Record, page: str) -> None:
    text = Page(page).text
    body = text[text.index("against its base") :]
    assert (
        body.index(record["verdict"])
        < body.index("A lock is friction, not a guarantee")
        < body.index("Utility")
    )


def test_page_asks_nothing_of_a_network(page: str) -> None:
    assert "://" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    tags = {tag for tag, _ in Page(page).elements}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    for tag, attrs in Page(page).elements:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#"), tag
    assert "default-src 'none'" in page


def test_same_record_gives_same_bytes_in_another_process(page: str, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import make_record;"
        "import matplotlib; matplotlib.rcParams['font.size'] = 30; matplotlib.rcParams['text.color'] = 'red';"
        "from speclock.report import write; write(make_record(), sys.argv[2])"
    )
    out = tmp_path / "report.html"
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(out)], check=True)
    assert out.read_text(encoding="utf-8") == page


def test_rendering_leaves_the_record_alone(small: Record) -> None:
    before = copy.deepcopy(small)
    render(small)
    assert small == before


HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}$\\frac{1}{0}$\n\x00\ud800漢"
)


def test_names_cannot_become_markup(small: Record) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            # A target and a status are one of a few words; the rest is anybody's.
            kept = ("format", "target", "status")
            return {name: held if name in kept else poison(held) for name, held in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    poisoned = poison(small)
    for part in ("environment", "summary"):
        poisoned[part][HOSTILE] = HOSTILE
    poisoned["locked"]["card"]["config"][HOSTILE] = HOSTILE
    poisoned["runs"][0] |= {"target": HOSTILE, "status": HOSTILE}
    page = Page(render(poisoned))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "{{ 7*7 }}" in page.text


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    ids = Page(page).having("id")
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert references
    assert references <= set(ids)


def test_both_colour_schemes_define_every_colour(page: str) -> None:
    light, dark = page.split("@media (prefers-color-scheme: dark)", 1)
    dark = dark[: dark.index("}")]
    used = set(re.findall(r"var\(--([a-z-]+)", page)) - {"sans", "serif", "mono", "c"}
    assert {"base", "scratch", "control", "locked", "ink", "rule"} <= used
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): ?#[0-9a-f]{3,6}", figures)


def test_figures_speak_and_have_a_narrow_twin(page: str) -> None:
    figures = [attrs for tag, attrs in Page(page).elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(figures) == 8
    assert all(len(attrs["aria-label"] or "") > 30 for attrs in figures)
    assert sorted({int((attrs["viewbox"] or "").split()[2]) for attrs in figures}) == [328, 900]


def test_key_figures(record: Record, page: str) -> None:
    text = Page(page).text
    summary = record["summary"]
    for target in ("base", "scratch", "control", "locked"):
        assert f"{100 * summary[f'best_{target}']:.1f}%" in text
        low, high = summary["intervals"][f"best_{target}"]
        assert f"{100 * low:.1f}–{100 * high:.1f}%" in text
    assert "98.8%" in text
    assert "−1.2 points" in text
    assert f"{summary['uplift']:.2f}" in text
    assert "> 4.0×" in text
    assert summary["strongest_attack"] in text
    assert "3e-4" in text
    assert "0.0003" not in text


def test_every_run_and_curve_is_in_the_table(record: Record, page: str) -> None:
    table = page[page.index('<section id="runs"') : page.index('<section id="data"')]
    assert table.count("<tr class=") == len(record["runs"])
    with_points = [run for run in record["runs"] if run["curve"]]
    lines = re.findall(r'points="([^"]+)"', table)
    assert len(lines) == len(with_points) < len(record["runs"])
    # 13 points a full run; what a diverged run had before it broke is there as well.
    assert {len(line.split()) for line in lines} == {13, 5, 3}
    assert "ValueError: fixture reason" in table


def test_a_diverged_run_is_marked_and_has_no_score(record: Record, page: str) -> None:
    rows = re.findall(r'<tr class="\w+ lost">.*?</tr>', page, re.DOTALL)
    lost = [run for run in record["runs"] if run["status"] != "ok"]
    assert len(rows) == len(lost) > 0
    assert all('<td class="n best">–</td>' in row for row in rows)
    assert f"{sum(run['status'] == 'diverged' for run in lost)} diverged" in page


def test_flags_say_why_and_what_next(record: Record) -> None:
    text = Page(render(record)).text
    assert "2 flags: read before relying on it" in text
    for flag in record["flags"]:
        assert flag["why"] in text
        assert flag["next"] in text
    record["flags"] = []
    text = Page(render(record)).text
    assert "No flag was raised" in text
    assert "read before relying" not in text


def test_stand_ins_are_named_beside_their_numbers(small: Record) -> None:
    def marked(page: str) -> set[str]:
        parts = re.findall(r"<h([23])>([^<]*)(.*?)(?=<h[23]>|$)", page, re.DOTALL)
        return {title.strip() for _, title, rest in parts if "stand-in data</a>" in rest}

    attack_only = {"Uplift", "Slowdown", "Best score of the attacker", "Score against steps", "Every run"}
    page = render(small)
    assert attack_only <= marked(page)
    assert marked(page).isdisjoint({"Utility", "Utility and the lock"})
    assert "These stand in for the paper&#39;s AG News topics" in page
    small["attack_task"]["source"]["stand_in"] = None
    assert "stand-in data" not in render(small)


def test_command_and_environment_are_exact(record: Record, page: str) -> None:
    text = Page(page).text
    assert record["command"] in text
    for name, value in record["environment"].items():
        assert name.replace("_", " ") in text
        assert str(value) in text


def test_single_seed_says_that_it_has_no_interval(small: Record) -> None:
    text = Page(render(small)).text
    assert "1 seed" in text
    assert "one seed gives none" in text
    assert "no interval" in text


def test_nulls_are_named_and_never_shown_as_zero(small: Record) -> None:
    small["summary"] = dict.fromkeys(small["summary"])
    small["locked"]["card"] = None
    small["spectra"] = []
    text = Page(render(small)).text
    for words in ("not measured", "Not defined in this record", "without a lock card", "holds no spectra"):
        assert words in text
    tiles = text[text.index("Utility") : text.index("Score against steps")]
    assert "0.0%" not in tiles
    assert "0.00" not in tiles


def test_only_diverged_runs(record: Record) -> None:
    for run in record["runs"]:
        run |= {"status": "diverged", "best": None}
    page = render(record)
    assert "No run of this audit has a score: 183 of 183 diverged" in Page(page).text
    figure = page[page.index('<section id="sweep"') : page.index('<section id="spectra"')]
    assert figure.count(">div</text>") == 2 * 61
    assert not re.search(r">\d+</text>", figure)


def test_no_control(record: Record) -> None:
    record["runs"] = [run for run in record["runs"] if run["target"] != "control"]
    record["summary"]["best_control"] = None
    page = render(record)
    figure = page[page.index('<section id="sweep"') : page.index('<section id="spectra"')]
    assert ">control</text>" not in figure
    assert ">locked</text>" in figure


@pytest.mark.parametrize(
    "key",
    [
        "suite",
        "verdict",
        "base",
        "locked",
        "retain_task",
        "attack_task",
        "summary",
        "runs",
        "spectra",
        "flags",
    ],
)
@pytest.mark.parametrize("value", [None, "missing"])
def test_any_part_may_be_missing(small: Record, key: str, value: str | None) -> None:
    if value is None:
        small[key] = None
    else:
        del small[key]
    page = Page(render(small))
    assert [name for name in page.having("id") if name in SECTIONS] == SECTIONS


def test_bare_record() -> None:
    text = Page(render({"format": "speclock-audit/1"})).text
    for words in ("holds no verdict", "holds no runs", "holds no spectra", "command is not in this record"):
        assert words in text


def test_hundreds_of_runs_stay_small(make_record: Callable[..., Record]) -> None:
    rates = tuple(10 ** (-7 + i / 4) for i in range(9))
    record = make_record(rates=rates, matrices=211)
    assert len(record["runs"]) > 300
    for run in record["runs"]:
        run["config"]["note"] = "a long setting " * 8
        run["curve"] = [[step, 0.5] for step in range(500)]
    assert len(render(record).encode()) < 1_000_000


@pytest.mark.parametrize("found", [{}, {"format": "speclock-audit/2"}, [], None])
def test_other_records_are_refused(found: Any) -> None:
    with pytest.raises(InputError, match=r"not an audit record.*audit\.json"):
        render(found)


def test_write_is_whole(small: Record, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    write(small, out)
    assert out.read_text(encoding="utf-8") == render(small)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    small["locked"]["name"] = "\ud800"
    write(small, out)
    assert "Audit of ?" in out.read_text(encoding="utf-8")


def test_write_refused_by_the_file_system_is_one_line(small: Record, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "report.html"
    with pytest.raises(InputError, match=r"report\.html") as caught:
        write(small, out)
    assert "\n" not in str(caught.value)


def test_importing_the_room_costs_no_matplotlib() -> None:
    script = "import sys, speclock.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
