"""The page as a reader, a browser and a hostile task name meet it."""

from __future__ import annotations

import copy
import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from speclock.audits.compare import Comparison
from speclock.audits.record import TARGETS, Flag, Record, read
from speclock.cli.report import command
from speclock.errors import InputError
from speclock.numbers import between, interval, percent, points, ratio, times
from speclock.report import render, view, write, write_comparison

SECTIONS = [
    "verdict", "figures", "strongest", "flags", "curves", "families", "search", "spectra", "lock", "data", "again",
    "runs",
]  # fmt: skip
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


def section(page: str, name: str) -> str:
    """The markup of one section."""
    start = page.index(f'id="{name}"')
    ends = [page.find(end, start) for end in ("</section>", "</header>")]
    return page[start : min(end for end in ends if end >= 0)]


def text_of(part: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", part)).strip())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their figures, which take most of a page's time and have tests of their own."""

    def stub(name: str) -> Callable[..., str]:
        def draw(record: Record, narrow: bool = False) -> str:
            return f"<svg>{name}</svg>"

        draw.__name__ = name
        return draw

    monkeypatch.setattr(view, "FIGURES", [stub(draw.__name__) for draw in view.FIGURES])


# -- the page as markup ----------------------------------------------------------------------------------


def test_every_section_is_there_in_order(page: str) -> None:
    assert [name for name in Page(page).having("id") if name in SECTIONS] == SECTIONS


def test_the_verdict_comes_first_and_is_tempered(record: Record, page: str) -> None:
    text = Page(page).text
    body = text[text.index("against its base") :]
    assert (
        body.index(record.verdict) < body.index("A lock is friction, not a guarantee") < body.index("Utility")
    )


def test_page_asks_nothing_of_a_network(page: str, comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(comparison, tmp_path / "compare.html")
    compared = (tmp_path / "compare.html").read_text(encoding="utf-8")
    for found in (page, compared):
        assert "://" not in found
        assert not re.search(r"@import|url\((?!#)", found)
        tags = {tag for tag, _ in Page(found).elements}
        assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
        assert all("src" not in attrs for _, attrs in Page(found).elements)
        assert "default-src 'none'" in found
    assert all(link.startswith("#") for link in Page(page).having("href"))
    outside = {link for link in Page(compared).having("href") if not link.startswith("#")}
    assert outside == {"gentle/report.html", "harsh/report.html"}


def test_same_record_gives_same_bytes_in_another_process(small: Record, tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import make_record;"
        "import matplotlib; matplotlib.rcParams['font.size'] = 30; matplotlib.rcParams['text.color'] = 'red';"
        "from speclock.report import write;"
        "write(make_record(seeds=(1,), rates=(1e-4,), matrices=3), sys.argv[2])"
    )
    out = tmp_path / "report.html"
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(out)], check=True)
    assert out.read_text(encoding="utf-8") == render(small)


def test_rendering_leaves_the_record_alone(small: Record) -> None:
    before = copy.deepcopy(small)
    render(small)
    assert small == before


@pytest.mark.usefixtures("undrawn")
def test_a_record_read_back_gives_the_same_page(small: Record, tmp_path: Path) -> None:
    small.runs[0].curve.append((64, float("nan")))
    small.save(tmp_path)
    assert render(read(tmp_path)) == render(small)


HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{ 7*7 }}$\\frac{1}{0}$\n\x00\ud800漢"
)


def test_names_cannot_become_markup(small: Record) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            # A target, a stage and a status are one of a few words; the rest is anybody's.
            kept = ("format", "target", "status", "stage", "answers")
            return {name: held if name in kept else poison(held) for name, held in value.items()}
        if isinstance(value, list | tuple):
            return [poison(item) for item in value]
        return HOSTILE if isinstance(value, str) else value

    poisoned = Record.from_dict(poison(small.to_dict()))
    for part in (poisoned.environment, poisoned.summary, poisoned.locked["card"]["config"]):
        part[HOSTILE] = HOSTILE
    poisoned.locked["card_problem"] = None
    poisoned.runs[0].target = poisoned.runs[0].status = HOSTILE
    poisoned.runs[0].beside = {HOSTILE: 0.5}
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
    assert {*TARGETS, "ink", "rule"} <= used
    for name in used:
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): ?#[0-9a-f]{3,6}", figures)


def test_figures_speak_and_have_a_narrow_twin(page: str) -> None:
    figures = [attrs for tag, attrs in Page(page).elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(figures) == 10
    assert all(len(attrs["aria-label"] or "") > 30 for attrs in figures)
    assert sorted({int((attrs["viewbox"] or "").split()[2]) for attrs in figures}) == [328, 900]


# -- the numbers -----------------------------------------------------------------------------------------


def test_key_figures(record: Record, page: str) -> None:
    text, summary = text_of(section(page, "figures")), record.summary
    for target in TARGETS:
        assert percent(summary[f"best_{target}"]) in text
        assert interval(summary["intervals"][f"best_{target}"]) in text
    assert "100.0% → 98.8%" in text
    assert "−1.2 points; n = 1024 test examples" in text
    assert points(summary["worth"]) in text
    assert f"Uplift {ratio(summary['uplift'])} {between(summary['intervals']['uplift'])}" in text
    assert f"only fine-tunes: {ratio(summary['uplift_uninformed'])}" in text
    assert (
        f"Excess over the student: {ratio(summary['excess'])}; the student does the retain task at 96.7%"
        in text
    )
    assert "Slowdown 5.3× 3.1× or more" in text
    assert f"target {percent(summary['target'])} on the validation split" in text
    assert "In examples: 6.1×." in text
    assert "In operations: 7.8×." in text
    assert f"The floor is {percent(summary['floor'])}, set by classical" in text
    assert "0.0003" not in page


def test_the_strongest_attack_on_each_target_and_how_many_runs_went_to_the_end(
    record: Record, page: str
) -> None:
    rows = re.findall(r'<tr class="(\w+)">(.*?)</tr>', section(page, "strongest"), re.DOTALL)
    assert {target for target, _ in rows} == set(TARGETS) - {"released"}
    for target, row in rows:
        words, complete = text_of(row), record.summary["complete"][target]
        assert record.summary["strongest_attacks"][target] in words
        assert percent(record.summary[f"best_{target}"]) in words
        assert f"{complete['to_the_end']} of {complete['runs']}" in words
        assert ("sets the floor" in words) == (target == "classical")
    text = text_of(section(page, "strongest"))
    assert "Every finalist on it lost" not in text
    assert "211 forward and backward passes, 38.2·10¹² operations" in text
    assert (
        "Of the attacks that lose at most 10.0% of utility, the strongest was adamw at lr 1e-4: 57.2%" in text
    )


def test_validation_and_test_scores_are_told_apart_in_words(page: str) -> None:
    assert "on the test split" in text_of(section(page, "figures"))
    assert "Scores on the validation split" in text_of(section(page, "curves"))
    assert "on the validation split, not the test scores quoted" in text_of(section(page, "families"))
    assert "on the validation split" in text_of(section(page, "search"))
    assert "Only finalists are scored on the test split" in text_of(section(page, "runs"))
    for name in ("strongest", "runs"):
        heads = re.findall(r"<th[^>]*>([^<]*)</th>", section(page, name))
        assert any("test" in head for head in heads)
        assert any("validation" in head for head in heads)


def test_families_have_a_row_each_and_the_inert_are_grey(record: Record, page: str) -> None:
    rows = re.findall(
        r'<tr( class="inert")?>\s*<td class="name family">(.*?)</tr>', section(page, "families"), re.DOTALL
    )
    assert len(rows) == len(record.families)
    inert = {row["family"]: row["inert"] for row in record.families}
    order = []
    for grey, row in rows:
        name = re.split(r"<", row)[0].strip()
        order.append(name)
        assert bool(grey) == inert[name] == (" inert " in text_of(row))
        (entry,) = [entry for entry in record.families if entry["family"] == name]
        for target in ("base", "control", "locked"):
            seen = entry["targets"][target]
            assert f"{percent(seen['best'])} {seen['to_the_end']} of {seen['runs']} to the end" in text_of(
                row
            )
    assert order[0] == "clip, then adamw", "the strongest on the locked model first"
    assert any(inert.values())
    assert [inert[name] for name in order] == sorted(inert.values()), "and what counts for nothing last"
    assert "1 failed, 1 diverged" in text_of(section(page, "families"))


def test_every_run_and_curve_is_in_the_table(record: Record, page: str) -> None:
    table = section(page, "runs")
    assert table.count("<tr class=") == len(record.runs)
    with_points = [run for run in record.runs if run.curve]
    lines = re.findall(r'points="([^"]+)"', table)
    assert len(lines) == len(with_points) < len(record.runs)
    # Finalists' doublings, a search's four, what a pruned and a diverged run had before they ended.
    assert {len(line.split()) for line in lines} == {10, 7, 4, 2}
    assert "ValueError: fixture reason" in table
    tests = [run for run in record.runs if run.test is not None]
    assert all(f'<td class="n best">{percent(run.test)}</td>' in table for run in tests)
    assert table.count('<td class="n best">–</td>') == len(record.runs) - len(tests)


def test_a_lost_run_is_marked_and_has_no_score(record: Record, page: str) -> None:
    rows = re.findall(r'<tr class="\w+ lost">.*?</tr>', page, re.DOTALL)
    lost = [run for run in record.runs if run.status != "ok"]
    assert len(rows) == len(lost) > 0
    assert all('<td class="n best">–</td>' in row and '<td class="n">–</td>' in row for row in rows)
    assert f"{sum(run.status == 'diverged' for run in lost)} diverged" in page


@pytest.mark.usefixtures("undrawn")
def test_flags_say_why_and_what_next(small: Record) -> None:
    text = Page(render(small)).text
    assert "2 flags: read before relying on it" in text
    for flag in small.flags:
        assert flag.why in text
        assert flag.next in text
    small.flags = []
    text = Page(render(small)).text
    assert "No flag was raised" in text
    assert "read before relying" not in text


@pytest.mark.usefixtures("undrawn")
def test_stand_ins_are_named_beside_their_numbers(small: Record) -> None:
    def marked(page: str) -> set[str]:
        parts = re.findall(r"<h([23])[^>]*>([^<]*)(.*?)(?=<h[23]|$)", page, re.DOTALL)
        return {title.strip() for _, title, rest in parts if "stand-in data</a>" in rest}

    attack_only = {"Worth", "Uplift", "Slowdown", "Best score of the attacker", "Score against steps", "Every run",
                   "Families of attacks", "The strongest attack on each target"}  # fmt: skip
    page = render(small)
    assert attack_only <= marked(page)
    assert marked(page).isdisjoint({"Utility", "The lock and the locked folder"})
    assert "These stand in for the paper&#39;s AG News topics" in page
    small.attack_task["source"]["stand_in"] = None
    assert "stand-in data" not in render(small)


def test_tasks_are_described_by_their_three_splits(page: str) -> None:
    text = text_of(section(page, "data"))
    assert "1200 train, 256 validation, 1024 test" in text
    assert "48 train, 256 validation, 800 test" in text


def test_command_and_environment_are_exact(record: Record, page: str) -> None:
    text = text_of(section(page, "again"))
    assert record.command in text
    for name, value in record.environment.items():
        assert name.replace("_", " ") in text
        assert str(value) in text


@pytest.mark.usefixtures("undrawn")
def test_differences_and_card_problem(small: Record, page: str) -> None:
    text = text_of(section(page, "lock"))
    assert "configuration initializer_range 0.02 1e4 yes" in text
    assert "configuration torch_dtype float32 bfloat16 no" in text
    small.locked |= {"differences": [], "card": None, "card_problem": 'line 3 has no "lock"'}
    text = text_of(section(render(small), "lock"))
    assert "Nothing but the weights" in text
    assert 'was taken for no claim: line 3 has no "lock"' in text
    small.locked = {}
    text = text_of(section(render(small), "lock"))
    assert "does not say what else differs" in text
    assert "came without a lock card" in text


# -- other records ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_nothing_to_protect(make_record: Callable[..., Record]) -> None:
    record = make_record(seeds=(1,), rates=(1e-4,), matrices=3, plateaus={"classical": (0.91, 1.0, 0.0)})
    assert record.summary["worth"] < 0.05
    record.flags = [Flag(name="nothing_to_protect", why="little", next="choose another task")]
    text = text_of(section(render(record), "figures"))
    assert "too little for a lock on it to be judged" in text
    assert text.count("With so little worth this says nothing") == 2
    record.flags = []
    assert "so little worth" not in render(record)


@pytest.mark.usefixtures("undrawn")
def test_every_locked_run_diverged(
    make_record: Callable[..., Record], summarise_: Callable[[Record], None]
) -> None:
    record = make_record(seeds=(1, 2), rates=(1e-4, 1e-3), matrices=3)
    for run in record.runs:
        if run.target == "locked":
            run.status, run.best, run.test = "diverged", None, None
    summarise_(record)
    page = render(record)
    text = text_of(section(page, "figures"))
    assert "Uplift – Not defined in this record" in text
    assert "all 16 runs on it were lost: 16 diverged" in text
    strongest = dict(re.findall(r'<tr class="(\w+)">(.*?)</tr>', section(page, "strongest"), re.DOTALL))
    assert text_of(strongest["locked"]) == "locked – – – – – 0 of 16"


def test_no_run_has_a_score(small: Record) -> None:
    for run in small.runs:
        run.status, run.best, run.test = "diverged", None, None
    small.summary |= {f"best_{target}": None for target in TARGETS} | {"strongest_attacks": {}}
    page = render(small)
    total = len(small.runs)
    assert f"No run of this audit has a test score: {total} of {total} diverged" in Page(page).text
    figure = section(page, "search")
    assert figure.count(">div</text>") == 2 * sum(run.stage == "search" for run in small.runs)
    assert not re.search(r">\d+</text>", figure)


@pytest.mark.parametrize("bound", ["> 12.0", "> 8"])
@pytest.mark.usefixtures("undrawn")
def test_a_censored_slowdown_is_a_bound_in_words(small: Record, bound: str) -> None:
    small.summary |= {"slowdown": bound, "slowdown_examples": "> 30.5", "slowdown_interval": None}
    text = text_of(section(render(small), "figures"))
    assert f"Slowdown {times(bound)}" in text
    assert (
        "Censored: no finalist on the locked model was seen at the target in the mean over its seeds" in text
    )
    assert "In examples: > 30.5×, censored." in text
    small.summary |= {"slowdown": 2.5, "slowdown_examples": 2.0}
    assert "ensored" not in render(small)


@pytest.mark.usefixtures("undrawn")
def test_no_control_no_student_no_public(make_record: Callable[..., Record]) -> None:
    record = make_record(
        seeds=(1,), rates=(1e-4,), matrices=3, targets=("base", "scratch", "classical", "locked")
    )
    record.base["student"] = {}
    record.locked["no_control"] = "the control diverged"
    page = render(record)
    for name in ("control", "student", "public"):
        assert f'<tr class="{name}' not in page
    assert "No student was attacked" in text_of(section(page, "figures"))
    assert "No control: the control diverged." in text_of(section(page, "strongest"))
    record.locked |= {"no_control": None, "control": {"utility": 0.61, "utility_base": 0.95, "given_up": 1}}
    said = text_of(section(render(record), "strongest"))
    assert "The control does the retain task at 61.0% of the validation split, the base at 95.0%; " in said
    assert "its training began again, gentler, 1 time." in said


@pytest.mark.usefixtures("undrawn")
def test_collapsed_runs_have_an_asterisk_and_a_legend(small: Record, collapse_: Callable[..., None]) -> None:
    assert "* collapsed" not in render(small)
    collapse_(small)
    page = render(small)
    for name in ("families", "search", "runs"):
        assert "* collapsed: reached the task only by ruining the model" in section(page, name)
    assert "1 collapsed*" in text_of(section(page, "families"))
    (row,) = re.findall(r'<tr class="locked lost">.*?</tr>', section(page, "runs"), re.DOTALL)
    assert "73.2%*" in row
    assert '<td class="n best">–</td>' in row
    assert '<th class="n">clean beside it</th>' in section(page, "runs")
    assert "31.0%" in row


@pytest.mark.usefixtures("undrawn")
def test_what_the_lock_costs_has_the_paired_interval_of_the_change(small: Record) -> None:
    row = {"examples": 185, "score_base": 0.962, "score_locked": 0.951, "agreement": 0.97}
    row |= {"calibration_base": 0.02, "calibration_locked": 0.03}
    small.cost = {"test split": row | {"interval_change": [-0.038, 0.016]}, "windows": row}
    text = text_of(section(render(small), "cost"))
    assert "test split 185 96.2% 95.1% −1.1 points −3.8 points to +1.6 points" in text
    # A record from before has none.
    assert "windows 185 96.2% 95.1% −1.1 points 97.0%" in text
    small.cost["windows"] = row | {"score_locked": None}
    assert "windows 185 96.2% – – 97.0%" in text_of(section(render(small), "cost"))


@pytest.mark.usefixtures("undrawn")
def test_a_language_model_is_told_of_in_a_bytes_likelihood_and_perplexity(small: Record) -> None:
    """A hundredth of it is what five points of an accuracy are, so it is not called a point."""
    for task in (small.retain_task, small.attack_task):
        task["metric"] = "likelihood"
    small.summary |= {"utility_base": 0.55, "utility_locked": 0.54, "worth": 0.031, "utility_bound": 0.02}
    row = {"examples": 185, "score_base": 0.55, "score_locked": 0.54, "interval_change": [-0.012, -0.008]}
    row |= {"perplexity_base": 10.0, "perplexity_locked": 10.76, "interval_perplexity": None}
    small.cost = {"test split": row}
    page = render(small)
    figures = text_of(section(page, "figures"))
    assert "55.0% → 54.0%" in figures
    assert "−1.0% of a byte's likelihood (perplexity +7.6%)" in figures
    assert "Worth +3.1 % of a byte's likelihood" in figures
    assert "points" not in figures
    cost = text_of(section(page, "cost"))
    assert "change of a byte's likelihood, 95% interval" in cost
    assert "−1.0% −1.2% to −0.8%" in cost
    assert "2.0% of a byte's likelihood" in text_of(section(page, "strongest"))


@pytest.mark.usefixtures("undrawn")
def test_an_extended_budget_is_said(small: Record) -> None:
    assert "extended" not in text_of(section(render(small), "verdict"))
    small.suite["budget"] = 128
    text = text_of(section(render(small), "verdict"))
    assert "within 128 steps" in text
    assert "64 steps, extended to 128: an attack on the locked model still rose" in text


@pytest.mark.usefixtures("undrawn")
def test_single_seed(small: Record) -> None:
    small.summary["intervals"] = dict.fromkeys(small.summary["intervals"])
    text = Page(render(small)).text
    assert "1 seed" in text
    assert "one seed says nothing of how seeds differ" in text
    assert "95% interval: none in this record" in text


def test_nulls_are_named_and_never_shown_as_zero(small: Record) -> None:
    small.summary = dict.fromkeys(small.summary)
    small.locked["card"] = None
    small.spectra = []
    page = render(small)
    for words in (
        "Not defined in this record",
        "without a lock card",
        "holds no spectra",
        "No floor in this record",
    ):
        assert words in Page(page).text
    tiles = text_of(section(page, "figures"))
    assert "0.0%" not in tiles
    assert "0.00" not in tiles


@pytest.mark.parametrize(
    "part",
    ["suite", "base", "locked", "retain_task", "attack_task", "summary", "environment", "runs", "families", "spectra",
     "flags", "verdict"],
)  # fmt: skip
@pytest.mark.usefixtures("undrawn")
def test_any_part_may_be_empty(small: Record, part: str) -> None:
    setattr(small, part, type(getattr(small, part))())
    page = Page(render(small))
    assert [name for name in page.having("id") if name in SECTIONS] == SECTIONS


def test_bare_record() -> None:
    parts: dict[str, dict[str, Any]] = {
        name: {} for name in ("suite", "base", "locked", "retain_task", "attack_task")
    }
    text = Page(render(Record(**parts, runs=[]))).text
    for words in (
        "holds no verdict",
        "No run of this audit has a test score",
        "holds no runs of a search",
        "lists no families",
        "holds no spectra",
        "command is not in this record",
    ):
        assert words in text


def test_hundreds_of_runs_stay_small(make_record: Callable[..., Record]) -> None:
    record = make_record(rates=tuple(10 ** (-7 + i / 4) for i in range(12)), matrices=211)
    assert len(record.runs) > 300
    for run in record.runs:
        run.config["note"] = "a long setting " * 8
        run.curve = [(step, 0.5) for step in range(200)]
        run.answers = [1] * 1000
    assert len(render(record).encode()) < 1_200_000


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_write_is_whole(small: Record, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    write(small, out)
    assert out.read_text(encoding="utf-8") == render(small)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    small.locked["name"] = "\ud800"
    write(small, out)
    assert "Audit of ?" in out.read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_write_refused_by_the_file_system_is_one_line(small: Record, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "report.html"
    with pytest.raises(InputError, match=r"report\.html") as caught:
        write(small, out)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_the_page_of_a_folder_or_its_file(small: Record, tmp_path: Path) -> None:
    small.save(tmp_path)
    found = CliRunner().invoke(command, [str(tmp_path)])
    assert found.output.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert small.verdict in page
    elsewhere = tmp_path / "verdict.html"
    CliRunner().invoke(command, [str(tmp_path / "audit.json"), "--out", str(elsewhere)])
    assert elsewhere.read_text(encoding="utf-8") == page
    (tmp_path / "audit.json").write_text(json.dumps({"format": "speclock-audit/1"}))
    refused = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(refused.exception, InputError)
    assert "Run the audit again" in str(refused.exception)


def test_the_page_of_a_comparison(comparison: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    write_comparison(comparison, out)
    page = out.read_text(encoding="utf-8")
    text = text_of(section(page, "table"))
    for row in comparison.locks:
        assert (
            f"{percent(row.utility_base)} → {percent(row.utility_locked)} {interval(row.utility_interval)}"
            in text
        )
        assert f"{percent(row.best['locked'])} {interval(row.best_interval['locked'])}" in text
        assert f"{ratio(row.uplift)} {between(row.uplift_interval)}" in text
        assert f"{percent(row.floor)} classical" in text
        assert points(row.worth) in text
        assert row.verdict in Page(page).text
    assert "> 12.0×" in text
    assert "censored" in text
    assert "extended for harsh" in text_of(section(page, "verdict"))
    assert "says nothing" not in text
    assert ">excess</th>" in page
    for row in comparison.locks:
        row.flags.append("nothing_to_protect")
        row.excess = None
    write_comparison(comparison, out)
    page = out.read_text(encoding="utf-8")
    assert text_of(section(page, "table")).count("says nothing: too little worth") == 2
    assert "No lock has an uplift to show" in page
    assert ">excess</th>" not in page


def test_importing_the_room_costs_no_matplotlib() -> None:
    script = "import sys, speclock.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
