"""A report of whole runs, of runs that lack something, and as a browser shows it."""

import base64
import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from sj_online.app import findings, report, studies
from sj_online.app.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def written(run_dir, tmp_path_factory):
    """The page of a whole run beside one that was interrupted, with everything that can be measured."""
    folder = tmp_path_factory.mktemp("report")
    begun = folder / "begun"
    shutil.copytree(run_dir, begun)
    (begun / "summary.json").unlink()
    (begun / "metrics.jsonl").write_text((run_dir / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    (begun / "last.ckpt").unlink()
    found = report.write([run_dir, begun], folder / "page.html", parts=report.PARTS[:2])
    return folder / "page.html", found


class Images(HTMLParser):
    """The addresses of a page's images, and of anything else that it would load."""

    def __init__(self, text):
        super().__init__()
        self.images, self.others, self.rows = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.rows += tag == "tr"
        if tag == "img":
            self.images.append(values["src"])
        elif tag in ("script", "iframe", "object") or (tag == "link" and values["href"] != "data:,"):
            self.others.append(tag)


def test_the_page_holds_all_that_it_shows(written):
    path, _ = written
    page = Images(path.read_text())
    assert len(page.images) == 7  # curves, accuracy by steps, rates, potentials, learnt, separability, similarity
    for address in page.images:
        kind, encoded = address.split(",")
        assert kind == "data:image/svg+xml;base64" and ET.fromstring(base64.b64decode(encoded)).tag.endswith("svg")
    assert not page.others and "http" not in re.sub(r'src="[^"]*"', "", path.read_text()).replace("http-equiv", "")
    assert "default-src 'none'" in path.read_text()


def test_png_and_csv_lie_beside_it(written, run_dir):
    path, (whole, _) = written
    folder = path.with_suffix("")
    names = {each.name for each in folder.iterdir()}
    assert {"curves.png", "accuracy_by_steps.png", "tiny_rates.png", "tiny_similarity.png", "runs.csv"} <= names
    assert all((folder / name).read_bytes()[:4] == b"\x89PNG" for name in names if name.endswith("png"))
    with (folder / "runs.csv").open() as file:
        first, second = csv.DictReader(file)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert float(first["test accuracy"]) == summary["test_accuracy"]
    assert (first["run"], first["rule"], int(first["parameters"])) == ("tiny", "sltt", summary["parameters"])
    assert second["test accuracy"] == "" and second["epochs"] == "1"
    with (folder / "tiny_similarity.csv").open() as file:
        rows = {row["rule"]: float(row["cosine to BPTT"]) for row in csv.DictReader(file)}
    assert rows["BPTT"] == pytest.approx(1) and rows["SLTT"] < 1 and abs(rows["random direction"]) < 0.3
    with (folder / "accuracy_by_steps.csv").open() as file:
        accuracies = [float(row["accuracy"]) for row in csv.DictReader(file)]
    assert accuracies[-1] == pytest.approx(summary["test_accuracy"]) and len(accuracies) == 2


def test_what_is_missing_is_said(written):
    path, (whole, begun) = written
    text = path.read_text()
    assert any("one epoch only" in line for line in begun.missing)
    assert any("summary.json is missing" in line for line in begun.missing)
    assert any("activity and gradients are not measured" in line and "last.ckpt" in line for line in begun.missing)
    assert not any("summary.json" in line for line in whole.missing)
    assert f"tiny, begun: {findings.FIRING}".replace("'", "&#x27;") in text  # said once for both
    assert "Not asked for: cost" in text and "Nothing is measured." in text


def copied(run_dir, tmp_path, **files):
    shutil.copytree(run_dir, tmp_path / "run")
    for name, text in files.items():
        path = tmp_path / "run" / name.replace("_", ".")
        path.unlink() if text is None else path.write_text(text)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config_yaml": "num_steps: 2\nolder_key: 3\n"},
            "recipe cannot be read, so nothing is measured.*older_key",
        ),
        ({"config_yaml": None}, "the recipe cannot be read.*no such file"),
        ({"metrics_jsonl": None}, "no epoch has ended, so there are no curves"),
        ({"metrics_jsonl": '{"epoch": 1, "loss": 1.0}\n[1]\nno json\n{"loss": 1}\n'}, "one epoch only"),
        ({"summary_json": "[]"}, "summary.json is missing or damaged"),
        ({"last_ckpt": "no checkpoint"}, "activity and gradients are not measured: .*last.ckpt"),
    ],
)
def test_a_run_without_a_part_gives_a_report_that_says_so(run_dir, tmp_path, capsys, files, said):
    run = copied(run_dir, tmp_path, **files)
    parts = ["--parts", "" if "summary_json" in files else "activity,gradients"]
    assert main(["report", str(run), "--to", str(tmp_path / "page.html"), *parts]) == 0
    assert re.search(said, capsys.readouterr().out)
    assert "What is missing" in (tmp_path / "page.html").read_text()


def test_a_network_that_cannot_be_measured_does_not_stop_the_report(run_dir, monkeypatch):
    monkeypatch.setattr(findings, "activity", lambda *_: 1 / 0)
    found = findings.read(run_dir)
    findings.measure(found, ["activity"], checkpoint="last", root=None, say=lambda _: None)
    assert "activity of the neurons cannot be measured: ZeroDivisionError: division by zero" in found.missing
    assert found.learnt


def test_two_runs_of_one_name_are_told_apart_and_text_is_escaped(run_dir, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run_dir, tmp_path / name / "<i>run")
    runs = [tmp_path / name / "<i>run" for name in ("a", "b")]
    found = report.write(runs, tmp_path / "page.html", parts=[])
    assert [each.name for each in found] == ["<i>run (1)", "<i>run (2)"]
    text = (tmp_path / "page.html").read_text()
    assert "<i>" not in text and "&lt;i&gt;run (2)" in text
    assert "Not asked for: activity, gradients, cost" in text


def test_cost_is_measured_if_asked_for(run_dir, tmp_path, monkeypatch):
    asked = []
    row = studies.TrainingCost("SLTT", 2, 1.0, 1.0, 1.0, 1.0, 1, 1)
    monkeypatch.setattr(
        studies, "cost_of_rules", lambda *a, **k: asked.append((a[2], k["rounds"])) or ([row], ["x is out"])
    )
    report.write([run_dir], tmp_path / "page.html", parts=["cost"])
    assert asked == [([2, 4, 8], 0)]
    assert (tmp_path / "page" / "tiny_cost.png").exists() and "x is out" in (tmp_path / "page.html").read_text()


def test_errors_are_one_line(tmp_path, run_dir, capsys):
    for arguments, said in (
        ([str(tmp_path), "--to", "x.html"], "is not the directory of a run"),
        ([str(run_dir), "--to", str(tmp_path / "page")], "has no ending such as .html"),
        ([str(run_dir), "--to", "x.html", "--parts", "speed"], "'speed' is not one of activity, gradients, cost"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


LOOK = """<script>window.onload = () => { const wide = document.documentElement.scrollWidth;
document.body.dataset.found = JSON.stringify({images: [...document.images].map(i => i.naturalWidth),
drawn: [...document.images].map(i => i.getBoundingClientRect().width), wide, window: window.innerWidth,
empty: [...document.querySelectorAll('tbody')].filter(t => !t.innerText && !t.closest('details')).length}) }</script>"""


def looked_at(path, text, width):
    """What a browser makes of a page that is looked at by a script of the test: what it found, and console lines."""
    path.write_text(
        text.replace("default-src 'none'", "default-src 'unsafe-inline'").replace("</body>", LOOK + "</body>")
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [CHROMIUM, *options, profile, f"--window-size={width},800", "--dump-dom", path.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (found,) = re.findall(r'data-found="([^"]*)"', run.stdout)
    return json.loads(found.replace("&quot;", '"')), [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine (Debian's package chromium)")
@pytest.mark.parametrize("width", [1400, 500])
def test_a_browser_draws_every_figure_without_a_complaint(written, tmp_path, width):
    path, _ = written
    found, complaints = looked_at(tmp_path / "page.html", path.read_text(), width)
    assert not complaints
    assert len(found["images"]) == 7 and all(found["images"]) and found["empty"] == 0
    assert all(0 < drawn <= found["window"] for drawn in found["drawn"])
    assert found["wide"] <= found["window"]  # tables scroll in themselves


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine (Debian's package chromium)")
def test_the_browser_would_see_a_broken_page(written, tmp_path):
    text = written[0].read_text()
    broken = re.sub(r"svg\+xml;base64,.{9}", "svg+xml;base64,", text, count=1)
    broken = re.sub("<tbody>.*?</tbody>", "<tbody></tbody>", broken, count=1, flags=re.S)
    broken += '<script>console.error("x"); nothing()</script>'
    broken += '<div style="width:3000px">wide</div>'
    found, complaints = looked_at(tmp_path / "page.html", broken, 500)
    assert found["images"].count(0) == 1 and found["wide"] > found["window"] and found["empty"] == 1
    assert len(complaints) == 2
