import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from fake_runs import write_broken_sweep, write_csv, write_jsonl, write_pipeline, write_run, write_sweep

from alignment.report.main import run
from alignment.utils.errors import UserError


class Elements(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.text, self.inside = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            kind, text = self.scripts.pop()
            self.scripts.append((kind, text + data))
        elif self.inside != "style":
            self.text.append(data)


def page_of(*folders, output=None):
    return run(list(folders), output).read_text(encoding="utf-8")


def shown(page):
    return " ".join(" ".join(Elements(page).text).split())


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return page_of(write_broken_sweep(tmp_path_factory.mktemp("broken")))


def test_the_page_goes_into_the_folder_that_was_asked_for(tmp_path):
    write_sweep(tmp_path / "sweep", betas=(0.1,), seeds=2)
    assert run([tmp_path / "sweep"], None) == tmp_path / "sweep" / "report.html"
    assert run([tmp_path / "sweep" / "0"], None) == tmp_path / "sweep" / "0" / "report.html"
    assert run([tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"], None) == tmp_path / "sweep" / "report.html"
    assert run([tmp_path / "sweep"], tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert run([tmp_path / "sweep"], tmp_path / "new") == tmp_path / "new" / "report.html"
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.startswith(".")] == []


def test_a_page_that_cannot_be_written_is_an_error_in_words(tmp_path):
    write_run(tmp_path / "run", steps=2)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the report"):
        run([tmp_path / "run"], tmp_path / "file" / "page.html")


def test_nothing_is_fetched(broken):
    elements = Elements(broken)
    assert "link" not in elements.tags
    assert "iframe" not in elements.tags
    loaded = [value for _, name, value in elements.attributes if name in ("src", "href", "data", "action", "srcset")]
    assert loaded
    assert all(value.startswith("#") for value in loaded)
    style = re.search(r"<style>(.*?)</style>", broken, re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style


def test_only_the_pages_own_scripts_may_run(broken):
    elements = Elements(broken)
    policy = next(value for tag, name, value in elements.attributes if (tag, name) == ("meta", "content"))
    assert "default-src 'none'" in policy
    scripts = [text for kind, text in elements.scripts if kind is None]
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_text_of_a_run_stays_text(broken):
    elements = Elements(broken)
    assert "img" not in elements.tags
    assert not [name for _, name, _ in elements.attributes if name.startswith("on")]
    text = shown(broken)
    assert "</script><script>alert(1)</script><img src=x onerror=alert(2)> 日本語 ⟨202E⟩evil ␀␛[31m" in text
    assert "plain <b>text</b> prompt — naïve Ω 🙂" in text


def test_a_hostile_name_stays_a_name(tmp_path):
    folder = write_run(tmp_path / "<img src=x>'\"&run", steps=2, name="</script><i>x")
    write_csv(folder / "metrics/version_0/metrics.csv", [{"step": 1, "train/</script><img><!--": 1.0}])
    write_jsonl(folder / "evaluations.jsonl", [])
    elements = Elements(page_of(folder))
    assert not {"img", "i"} & set(elements.tags)


def test_everything_that_went_wrong_is_on_the_page(broken):
    text = shown(broken)
    for words in (
        "manifest.json cannot be read",
        "method.beta: got -1.0, expected > 0",
        "the loss is not finite at step 60",
        "train/loss/total is NaN or infinite at 11 of 70 points, first at step 60",
        "started 2 times",
        "no evaluation on fresh samples",
        "the chosen completions have become less likely",
        "evaluations.jsonl:5",
        "the job's folder holds no file of a run",
        "interrupted",
        "running",
    ):
        assert words in text, words


def test_what_cannot_be_read_is_on_standard_error_too(tmp_path, capsys):
    run([write_broken_sweep(tmp_path)], None)
    said = capsys.readouterr().err
    assert f"{tmp_path}/0: manifest.json cannot be read" in said
    assert f"{tmp_path}/7: holds no file of a run" in said


def test_a_pipeline_shows_its_stages(tmp_path):
    text = shown(page_of(write_pipeline(tmp_path / "quickstart")))
    assert "SFT and DPO: 2 runs" in text
    assert "sft: Gold reward on 128 held-out prompts rose" in text
    assert "alignment.methods.sft.SFT" in text


def test_one_run_has_its_whole_configuration_and_provenance(tmp_path):
    folder = write_run(tmp_path / "run")
    text = shown(page_of(folder))
    for words in ("label_smoothing: 0.0", "b7a8648228bec165", "5a334e5d4ce5 with uncommitted", str(folder), "561 MiB"):
        assert words in text, words
    assert "Keys that differ" not in text


def test_a_run_without_anything_still_makes_a_page(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "failed", "error": "ConfigError: method.bta"}')
    page = page_of(tmp_path)
    assert "ConfigError: method.bta" in shown(page)
    assert len(page) < 100_000, "no figures: no plotting library"


def test_thirty_runs_keep_the_page_small(tmp_path):
    write_sweep(tmp_path, betas=tuple(0.01 * i for i in range(1, 31)), seeds=1)
    page = page_of(tmp_path)
    assert len(page) < 8_000_000
    assert page.count("plotly.js v") == 1


def test_no_torch_is_imported(tmp_path):
    write_run(tmp_path / "run", steps=5)
    code = (
        "import sys; from pathlib import Path; from alignment.report.main import run; "
        f"run([Path({str(tmp_path / 'run')!r})], None); "
        "print([name for name in ('torch', 'pandas', 'datasets', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
