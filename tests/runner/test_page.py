"""The page in a real browser: reports of real runs, opened from a file, by mouse and by keyboard."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from peft_conformance import page
from peft_conformance.cases import Verdict
from peft_conformance.cli import app
from peft_conformance.expand import case_of
from peft_conformance.implementations import describe
from peft_conformance.language import find_specs_dir, load_suite
from peft_conformance.opening import Options
from peft_conformance.report import Results, as_text
from peft_conformance.run import Refusal, Run
from peft_conformance.script import reproduce
from typer.testing import CliRunner

FORK = """
import peft_reference
from peft_reference import *
from peft_reference import functional

__version__ = "3.1"


def inject_adapter_in_model(peft_config, model, *args, **kwargs):
    model = peft_reference.inject_adapter_in_model(peft_config, model, *args, **kwargs)
    for name, parameter in model.named_parameters():  # the fault: a fresh adapter changes the output
        if "lora_" in name and "_B" in name:
            parameter.data += 1.0
    return model


def delete_adapter(model, adapter_name, prefix, layer_cls=None):
    raise RuntimeError("</script><img src=x onerror=alert(1)><!-- & 'quoted'")
"""
DESCRIPTION = """# yaml-language-server: $schema=https://example.org/implementation.schema.json
schema: "1.0"
name: fork
module: the_fork
api_level: "0.21.2"
names: {functional.delete_adapter: delete_adapter}
expectations:
  - match: {clause: law.identity-at-init, check: as-base, axes: {dtype: float32, method: lora}}
    outcome: fail
    like: "."
    because: its B begins with ones <b>not</b> zeros
    link: https://example.org/issues/1
    review_by: 2099-01-01
"""
NOWHERE = DESCRIPTION.replace("fork", "nowhere").partition("names")[0]
SPECS = [
    "vocabulary",
    "methods/lora.yaml",
    "methods/ia3.yaml",
    "laws/layer.yaml",
    "api/delete_adapter.yaml",
]
SPECS += ["sources/papers.yaml", "sources/functions-for-integration.yaml"]
CLAUSES = {"law.identity-at-init", "delete.none-when-last", "delete.returns-remaining"}
LAYERS = ("one-linear", "one-embedding")
LABELS = ["reference", "fork 3.1", "nowhere unknown"]


def results_of(implementation: str, specs: Path) -> Results:
    """What a run finds on a few clauses."""
    try:
        run = Run(Options(implementation, specs=specs))
    except Refusal as refusal:
        if refusal.results is None:
            raise
        return refusal.results
    few = [case for case in run.cases if case.clause.id in CLAUSES]
    chosen = [case for case in few if case.axes.get("layer", LAYERS[0]) in LAYERS]
    rows = [run.row(case, check, run.verdict(case, check)) for case in chosen for check in case.checks]
    run.close()
    return Results(run.describe(), rows, left_out=run.left_out)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few specs, the reports of the reference, a faulty fork and one that is not there, and the page."""
    folder = tmp_path_factory.mktemp("page")
    for part in SPECS:
        source, target = find_specs_dir() / part, folder / "specs" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    (folder / "the_fork.py").write_text(FORK, "utf-8")
    for name, text in (("fork", DESCRIPTION), ("nowhere", NOWHERE)):
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    sys.path.insert(0, str(folder))
    try:
        for name in ("reference", "fork.yaml", "nowhere.yaml"):
            implementation = str(folder / name) if "." in name else name
            results_of(implementation, folder / "specs").write(folder / "reports" / Path(name).stem)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("the_fork", None)
    reports = [str(folder / "reports" / name) for name in ("reference", "fork", "nowhere")]
    output = ["--output", str(folder / "page.html"), "--specs", str(folder / "specs")]
    with pytest.MonkeyPatch.context() as patch:  # review dates and links are those of the description today
        patch.setattr(page.data, "described", lambda: {"fork": folder / "fork.yaml"})
        done = CliRunner().invoke(app, ["page", *reports, *output])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="session")
def text(folder: Path) -> str:
    return (folder / "page.html").read_text("utf-8")


@pytest.fixture(scope="session")
def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


# --- the file


def test_folder_of_reports_is_sorted_and_a_wrong_path_is_named(folder: Path) -> None:
    names = [found.header["implementation"]["name"] for found in page.find_reports([folder / "reports"])]
    assert names == ["fork", "nowhere", "reference"]
    done = CliRunner().invoke(app, ["page", str(folder / "specs")], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert "no results.jsonl there" in done.output


def test_all_verdicts_of_the_reports_are_in_the_page(folder: Path, data: dict[str, Any]) -> None:
    reports = page.find_reports(folder / "reports" / name for name in ("reference", "fork"))
    letters = {entry["letter"]: entry["name"] for entry in data["verdicts"]}
    for column, results in enumerate(reports):
        found = {}
        for clause in data["clauses"]:
            if isinstance(clause["cells"][column][0], str):
                continue
            for (check, *_), runs in zip(clause["checks"], clause["cells"][column][0], strict=True):
                unfolded = re.sub(r"(\d+)(\D)", lambda run: run[2] * int(run[1]), runs)
                for point, letter in zip(clause["points"], unfolded, strict=True):
                    axes = zip(clause["axes"], clause["values"], point, strict=True)
                    written = sorted(f"{axis}={values[at]}" for axis, values, at in axes)
                    found[f"{clause['id']}[{','.join(written)}]:{check}".replace("[]", "")] = letters.get(
                        letter
                    )
        assert {row["id"]: row["verdict"] for row in results.rows} == {k: v for k, v in found.items() if v}


def test_page_holds_nothing_that_could_be_loaded_and_no_text_as_markup(text: str) -> None:
    outside = re.sub(r"<script type=.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", outside)
    assert "@import" not in text
    assert "url(" not in text
    assert "onerror=alert" in text, "the fork's message is there"
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert "innerHTML" not in text
    assert "default-src 'none'" in text


def test_clause_that_only_a_report_knows_is_shown_as_such(folder: Path) -> None:
    results = page.find_reports([folder / "reports" / "reference"])[0]
    for row in results.rows:
        for key in ("id", "case", "clause"):
            row[key] = row[key].replace("delete.none-when-last", "delete.renamed")
    made = page.render(load_suite(folder / "specs"), [results])
    assert "delete.renamed" in made
    assert "is not in the specs" in made


# --- in the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium without a network; where there is none the tests are skipped, unless required."""
    programs = [next(filter(None, map(shutil.which, names)), None) for names in BROWSERS]
    if not all(programs):
        missing = "no chromium and chromedriver here (Debian packages chromium, chromium-driver)"
        if os.environ.get("PEFT_CONFORMANCE_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync disable-dev-shm-usage window-size=1280,900"
    for flag in [*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    driver.get("about:blank")
    driver.get_log("performance")  # what the browser's own first tab asked for
    yield driver
    driver.quit()


BROWSERS = (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))


class Page:
    """The page in the browser, by what a reader does and sees."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver, self.file = driver, file

    def open(self, state: str = "") -> Page:
        self.driver.get("about:blank")
        self.driver.get(f"{self.file.as_uri()}#{state}")
        assert self.js("return document.documentElement.dataset.ready") == "true"
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, milliseconds: int) -> None:
        self.js("return new Promise(done => setTimeout(done, arguments[0]))", milliseconds)

    def texts(self, selector: str) -> list[str]:
        """What stands in the elements that are shown."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter(e => e.checkVisibility()).map(e => e.innerText.trim())",
            selector,
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains, Keys

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(getattr(Keys, key, key))
        chain.perform()

    def choose(self, name: str, value: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("css selector", f"#filters [name={name}]")).select_by_value(value)

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    @property
    def focused(self) -> dict[str, str]:
        return self.js("return {...document.activeElement.dataset, tag: document.activeElement.tagName}")

    @property
    def state(self) -> dict[str, str]:
        found = parse_qs(self.js("return location.hash").lstrip("#"))
        return {name: value for name, (value, *_) in found.items()}

    @property
    def clauses(self) -> list[str]:
        """The ids of the clauses that are shown."""
        return [text.partition(" · ")[2] for text in self.texts("#matrix .clause-id")]


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Page]:
    yield Page(browser, folder / "page.html")
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in asked if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:", "about:"))] == []


def test_overview_counts_every_verdict_and_links_to_its_clauses(opened: Page, folder: Path) -> None:
    opened.open()
    report = page.find_reports([folder / "reports" / "fork"])[0]
    counts = report.counts()
    heads = [text.split()[-1] for text in opened.texts(".overview thead th")][1:]
    rows = opened.js(
        "return [...document.querySelectorAll('.overview tbody[data-column=\"1\"] tr')]"
        ".map(r => [...r.cells].map(c => c.innerText.trim().split('\\n')[0]))"
    )
    names = {"known": "expected-failure", "n/a": "not-applicable", "run": "not-run"}
    for profile, *numbers in rows[1:]:
        told = dict(zip(heads, (int(number.replace(",", "")) for number in numbers), strict=True))
        assert told.pop("checks") == counts[profile].total()
        assert {names.get(k, k): v for k, v in told.items() if v} == dict(counts[profile])
    assert opened.texts(".overview .why") == [f"NOT RUN: {report_of(folder, 'nowhere').header['reason']}"]
    opened.click(".overview tbody[data-column='1'] tr.whole td[data-verdict=error] a")
    assert opened.state == {"view": "clauses", "verdict": "error", "impl": "fork 3.1"}
    assert opened.clauses
    assert all(clause.startswith("delete.") for clause in opened.clauses)


def report_of(folder: Path, name: str) -> Results:
    return page.find_reports([folder / "reports" / name])[0]


def test_filters_act_at_once_and_are_in_the_address(opened: Page, data: dict[str, Any]) -> None:
    opened.open("view=clauses")
    everything = len(data["clauses"])
    assert opened.texts("#count") == [f"{everything} of {everything} clauses in 2 topics"]
    assert opened.clauses == [], "groups are closed at first"
    opened.choose("verdict", "expected-failure")
    assert opened.clauses == ["law.identity-at-init"]
    assert opened.texts("#count") == [f"1 of {everything} clauses in 1 topic"]
    opened.choose("verdict", "")
    opened.choose("method", "ia3")
    about_ia3 = opened.clauses
    assert "law.identity-at-init" in about_ia3
    assert "delete.none-when-last" not in about_ia3
    opened.choose("method", "")
    opened.driver.find_element("css selector", "#filters [name=q]").send_keys("None LAST")
    opened.wait(200)  # for the typing to pause
    assert "delete.none-when-last" in opened.clauses
    assert opened.state["q"] == "None LAST"
    shown, address = opened.clauses, opened.js("return location.hash")
    opened.open(address.lstrip("#"))
    assert opened.clauses == shown, "a link keeps the view"
    opened.driver.find_element("css selector", "#filters [name=q]").send_keys("zzz")
    opened.wait(200)  # for the typing to pause
    assert opened.texts("#matrix .empty") == ["No clause passes these filters."]
    opened.click("#filters [type=reset]")
    assert opened.state == {"view": "clauses"}


def test_method_limits_the_cells_to_its_own_points(opened: Page, folder: Path) -> None:
    opened.open("view=clauses&q=identity-at-init")
    cell = "#matrix [data-clause='law.identity-at-init'][data-column='1']"
    whole = [row for row in report_of(folder, "fork").rows if row["clause"] == "law.identity-at-init"]
    assert opened.texts(cell)[0].endswith(f" of {len(whole)}")
    opened.choose("method", "ia3")
    own = [row for row in whole if row["axes"]["method"].partition("-")[0] == "ia3"]
    assert 0 < len(own) < len(whole)
    assert opened.texts(cell) == [f"✓ pass\n{len(own)}"]


def test_columns_can_be_hidden_and_differences_found(opened: Page) -> None:
    opened.open("view=clauses&differ=1")
    assert set(opened.clauses) >= {"law.identity-at-init", "delete.none-when-last"}
    heads = opened.texts("#matrix thead th")
    assert [" ".join(head.split()[:2]) for head in heads[2:]] == ["fork 3.1", "nowhere unknown"]
    assert heads[3].endswith("not run")
    opened.click("#pick summary")
    opened.click("#pick input[value='fork 3.1']")
    assert opened.clauses == [], "what is left does not differ"
    assert opened.state["hide"] == "fork 3.1"
    assert len(opened.texts("#matrix thead th")) == 3


def test_keyboard_opens_a_cell_and_gets_the_focus_back(opened: Page) -> None:
    opened.open("view=clauses&q=identity-at-init")
    opened.js("document.querySelector('#expand').focus()")
    opened.press("TAB", "TAB")  # past Clear; what scrolls may be a stop too
    if opened.focused["tag"] != "BUTTON":
        opened.press("TAB")
    assert opened.js("return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert opened.js("return document.querySelectorAll('#matrix [tabindex=\"0\"]').length") == 1
    opened.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert opened.focused == {"clause": "law.identity-at-init", "column": "1", "tag": "BUTTON"}
    assert opened.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.press("ENTER")
    assert opened.js("return document.querySelector('#detail').open")
    assert opened.js("return document.activeElement.id") == "detail-title"
    assert opened.state["open"] == "law.identity-at-init"
    opened.press("ESCAPE")
    opened.wait(200)  # the event of a closed dialog comes in a task of its own
    assert not opened.js("return document.querySelector('#detail').open")
    assert opened.focused == {"clause": "law.identity-at-init", "column": "1", "tag": "BUTTON"}
    assert "open" not in opened.state
    opened.open("view=clauses&q=identity-at-init&open=law.identity-at-init&column=fork+3.1")
    opened.press("ESCAPE")  # opened by a link: the cell that it shows gets the focus
    opened.wait(200)
    assert opened.focused == {"clause": "law.identity-at-init", "column": "1", "tag": "BUTTON"}
    opened.press("ARROW_LEFT", "ARROW_LEFT", "ARROW_LEFT")
    assert opened.js("return document.activeElement.getAttribute('aria-expanded')") == "false"
    assert opened.clauses == []


def test_opened_cell_tells_promise_source_values_and_script(
    opened: Page, folder: Path, data: dict[str, Any]
) -> None:
    opened.open("open=law.identity-at-init&column=fork+3.1")
    suite = load_suite(folder / "specs")
    clause = suite.clause("law.identity-at-init")
    rows = [row for row in report_of(folder, "fork").sorted_rows() if row["clause"] == clause.id]
    known = next(row for row in rows if row["verdict"] == "expected-failure")
    failing = next(row for row in rows if row["verdict"] == "fail")
    assert opened.texts("#detail .promise") == [f"MUST{clause.text}"]
    facts = "\n".join(opened.texts("#detail .facts dd"))
    sentence = next(s for s in suite.sources["papers"]["sentences"] if s["id"] == "lora-init")
    assert sentence["says"] in facts
    assert f"specs/laws/layer.yaml:{clause.line}" in facts
    shown = opened.texts("#detail .outcome pre")
    assert as_text(failing["observed"]) in shown
    assert as_text(failing["expected"]) in shown
    assert (
        "Known: its B begins with ones <b>not</b> zeros (to be looked at again by 2099-01-01)"
        in "\n".join(opened.texts("#detail .reason"))
    )
    assert any("dtype=bfloat16" in place for place in opened.texts("#detail .places li"))
    implementation = describe(folder / "fork.yaml")
    implementation.version = "3.1"
    for row in (known, failing):
        case = case_of(suite, clause, row["case"], "0.21.2")
        assert case
        told = [row[key] for key in ("case", "check", "verdict", "expected", "observed", "detail")]
        script = reproduce(case, Verdict(*told), implementation)
        compile(script, "script", "exec")
        scripts = opened.js(
            "return [...document.querySelectorAll('#detail .script code')].map(c => c.textContent)"
        )
        assert script in scripts
    opened.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    opened.click("#detail .script button")
    opened.wait(100)
    assert opened.texts("#detail .script button")[0] == "Copied"
    pasted = opened.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert pasted in scripts
    opened.click("#detail .strip button")
    assert opened.state["column"].startswith("reference")
    assert opened.texts("#detail header .v") == ["✓ pass"]


def test_text_of_a_fork_stays_text(opened: Page) -> None:
    opened.open("open=delete.none-when-last&column=fork+3.1")
    assert any(
        "</script><img src=x onerror=alert(1)><!-- & 'quoted'" in text for text in opened.texts("#detail pre")
    )
    assert opened.js("return document.images.length") == 0


def test_column_that_could_not_be_built_gives_its_reason(opened: Page, folder: Path) -> None:
    opened.open("view=clauses&q=none-when-last&open=delete.none-when-last&column=nowhere+unknown")
    assert opened.texts("#matrix [data-clause='delete.none-when-last'][data-column='2']") == ["○ not run"]
    assert opened.texts("#detail .reason") == [report_of(folder, "nowhere").header["reason"]]


def test_capability_table_has_three_slices(opened: Page) -> None:
    opened.open("view=methods")
    opened.open("view=methods&pick=fork+3.1")
    cell = "#grid [data-clause='law.identity-at-init'][data-column='1'][data-limit={}]"
    assert opened.texts(cell.format("lora")) == ["✗"]
    assert opened.texts(cell.format("ia3")) == ["✓"]
    opened.click("#slice [value=method]")
    assert opened.state["fix"] == "method"
    opened.click("#slice [value=law]")
    assert opened.texts(cell.format("lora"))[0].startswith("✗ fail\n")
    opened.click(cell.format("lora"))
    assert opened.state["of"] == "lora"
    assert all("method=lora" in place for place in opened.texts("#detail .places li"))


def test_semantics_for_screen_readers(opened: Page) -> None:
    opened.open("view=clauses&q=identity-at-init")

    def tree() -> list[tuple[str, str]]:
        nodes = opened.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]

    found = tree()
    roles = {role for role, _ in found}
    assert {"table", "row", "rowheader", "columnheader", "cell", "search", "navigation", "main"} <= roles
    assert any(role == "table" and name.startswith("Verdicts by clause") for role, name in found)
    assert any(
        role == "rowheader" and "leaves the output of the model unchanged" in name for role, name in found
    )
    cells = [name for role, name in found if role == "button"]
    assert any(
        re.match(r"fail \d+ of \d+: \d+ fail, \d+ stale, \d+ known, \d+ pass$", name) for name in cells
    ), cells
    assert all(
        name for role, name in found if role in ("button", "combobox", "searchbox", "link", "checkbox")
    )
    assert any(role == "status" for role in roles)
    opened.open("open=law.identity-at-init&column=fork+3.1")
    assert ("dialog", "law.identity-at-init · fork 3.1") in tree()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_at_either_width(opened: Page, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for state in (
            "",
            "view=clauses&q=identity",
            "view=methods",
            "open=law.identity-at-init&column=fork+3.1",
        ):
            opened.open(state)
            assert opened.js("return document.documentElement.scrollWidth <= innerWidth"), state
        assert opened.js("return document.querySelector('#detail').scrollWidth <= innerWidth")
    finally:
        opened.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark_by_system_and_by_hand(opened: Page) -> None:
    def ground() -> int:
        channels = opened.js("return getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(int, re.findall(r"\d+", channels)[:3]))

    def system(scheme: str) -> None:
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)

    opened.open()
    system("light")
    light = ground()
    system("dark")
    dark = ground()
    assert dark < 150 < 600 < light
    opened.click("#theme")
    assert (opened.texts("#theme"), ground()) == (["Theme: light"], light)
    system("light")
    opened.click("#theme")
    assert (opened.texts("#theme"), ground()) == (["Theme: dark"], dark)
    opened.click("#theme")
    assert (opened.texts("#theme"), ground()) == (["Theme: system"], light)


def test_overview_is_there_without_javascript(text: str) -> None:
    plain = html.unescape(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert all(label in plain for label in LABELS)
    assert "Without JavaScript this page shows the overview only." in plain
