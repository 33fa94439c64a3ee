from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import run, study, write

from hf_compress.cli import main
from hf_compress.report.page import report_page, write_comparison_pictures
from hf_compress.report.page_words import PAGE_WORDS
from hf_compress.report.runs import read_runs


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# an attribute, a tag and an entity, each of which would write into the title if it were taken for markup
HOSTILE = "\"><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">&lt;|"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()


class Tags(HTMLParser):
    """The elements of a page with their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study, and a run in which everything that has a name has a hostile one."""
    folder = tmp_path_factory.mktemp("page")
    study(folder / "study", recipes=12, seeds=2)
    results = run(HOSTILE, 0, ("prune", "distill"), 0.5)
    results["task"]["name"] = results["recipe"]["model"]["name_or_path"] = HOSTILE
    for stage in results["stages"]:
        stage["warnings"] = [HOSTILE]
    write(folder / "hostile", results)
    journal = folder / "hostile" / "journal.jsonl"
    journal.write_text(json.dumps({"operation": "human", "minutes": 5, "kind": "reading", "note": HOSTILE}) + "\n")
    write(folder / "broken", {"format_version": 1, "stages": HOSTILE})
    return folder


@pytest.fixture(scope="module")
def page(folder):
    records, problems = read_runs([folder])
    assert len(records) == 25 and len(problems) == 1
    files = write_comparison_pictures(records, problems, folder / "report")
    assert files[0].name == "report.html" and {path.suffix for path in files[1:]} == {".png", ".svg"}
    return files[0]


def test_the_page_is_whole_in_itself(page):
    text = page.read_text()
    tags = Tags(text).found
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object", "embed", "base", "form")]
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources and all(value.startswith(("data:image/svg+xml;base64,", "#")) for value in sources)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    (policy,) = [a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_names_with_markup_are_text(page):
    tags = Tags(page.read_text())
    assert sum(tag == "script" for tag, _ in tags.found) == 1, "the page's own"
    assert not [a for _, a in tags.found if any(key.startswith("on") for key in a)]
    assert HOSTILE in "".join(tags.text)


def test_what_could_not_be_read_and_what_it_cost_are_there(page):
    text = "".join(Tags(page.read_text()).text)
    assert "broken" in text and "must be a list" in text
    assert all(PAGE_WORDS["en"][name] in text for name in ("frontier", "time", "warnings", "settings"))


def test_both_languages_say_the_same_things(folder):
    assert PAGE_WORDS["en"].keys() == PAGE_WORDS["zh"].keys()
    for key, text in PAGE_WORDS["en"].items():
        assert sorted(re.findall(r"\{\w*\}", text)) == sorted(re.findall(r"\{\w*\}", PAGE_WORDS["zh"][key])), key
    chinese = report_page(*read_runs([folder]), folder / "nothing", "zh")
    assert PAGE_WORDS["zh"]["settings"] in chinese and PAGE_WORDS["en"]["settings"] not in chinese


def browse(tmp_path, page, width=1280):
    """The page as a browser has it after its scripts."""
    options = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *FLAGS, *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_in_a_browser_nothing_injected_runs_and_the_tables_sort(page, tmp_path):
    dom = browse(tmp_path, page)
    assert "<title>run" not in dom and re.search(r"<title>[^<]+</title>", dom)
    assert "<button" in dom and "<button" not in page.read_text(), "the page's own script ran"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [380, 1280])
def test_nothing_is_wider_than_the_screen(page, tmp_path, width):
    """Measured in a frame of the given width, which no window has to allow."""
    inner = page.read_text().replace("<script", "<script data-own", 1)
    inner = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", inner)
    probe = tmp_path / "probe.html"
    (tmp_path / "inner.html").write_text(
        inner + "<script>parent.postMessage(document.documentElement.scrollWidth,'*')</script>"
    )
    probe.write_text(
        f"<title>wait</title><iframe src=inner.html width={width} height=800 style='border:0'></iframe>"
        "<script>addEventListener('message', event => { document.title = 'width ' + event.data })</script>"
    )
    dom = browse(tmp_path, probe, 1400)
    found = re.search(r"<title>width (\d+)</title>", dom)
    assert found, dom[:300]
    assert int(found[1]) <= width


def test_two_thousand_runs_take_little_memory(tmp_path):
    """As the program that people start; that it ends is all that is asked of its time."""
    study(tmp_path / "study", recipes=400, seeds=5)
    program = str(Path(sys.executable).with_name("hf-compress"))
    # from a small process, since the peak of a process begins with that of the one that starts it
    code = (
        "import os, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:])\n"
        "_, status, usage = os.wait4(process.pid, 0)\n"
        "print(status, usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, program, "report", tmp_path / "study", "--output", tmp_path / "report"]
    done = subprocess.run(command, capture_output=True, text=True)
    status, memory = map(int, done.stderr.split()[-2:])
    assert status == 0, done.stderr
    assert memory < 10**9
    for name in ("comparison.md", "comparison.csv", "experiment.md", "report.html"):
        assert (tmp_path / "report" / name).stat().st_size > 1000


def test_a_report_of_one_run(tmp_path):
    write(tmp_path / "run", run("one", 0, ("prune",), 0.5))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out"), "--lang", "zh"]) == 0
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "experiment.zh.md").exists()
