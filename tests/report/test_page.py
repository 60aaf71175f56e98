from __future__ import annotations

import base64
import io
import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from autoad.data import read_dataset
from autoad.errors import ArtifactError
from autoad.models import Model, read_manifest
from autoad.report import write_report
from autoad.search.final_scores import read_final_scores
from tests.conftest import Run
from tests.models.registering import make_artifact
from tests.report.conftest import HOSTILE, Made, rows_of

_ADDRESSES = ("src", "href", "srcset", "action", "poster", "data", "xlink:href")


class Page(HTMLParser):
    """A page's elements, its visible text, and the text of its style sheets and scripts."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.styles, self.data = "", "", ""
        self.heads: list[str] = []
        self._within = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = dict(attrs).get("type") or tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "style":
            self.styles += data
        elif self._within == "application/json":
            self.data += data
        elif self._within != "script":
            self.text += data
            if self._within == "button":
                self.heads.append(data)

    def addresses(self) -> list[str]:
        return [its[name] or "" for _, its in self.elements for name in _ADDRESSES if name in its]


def test_the_scores_that_are_kept_are_those_behind_the_figures(searched: dict[str, Any], state: Path) -> None:
    scores = read_final_scores(state / "searches" / searched["search_id"] / "scores.parquet")
    roles = json.loads((state / "searches" / searched["search_id"] / "roles.json").read_text())["role_of"]
    for model, metrics in (("champion", "test"), ("default_patchcore", "default_patchcore")):
        tested = [score for score in scores if (score.model, score.role) == (model, "test")]
        auroc = roc_auc_score([score.label != "good" for score in tested], [score.score for score in tested])
        assert auroc == pytest.approx(searched["champion"][metrics]["image_auroc"])
        good = [score.is_anomalous for score in tested if score.label == "good"]
        assert np.mean(good) == searched["champion"][metrics]["false_positive_rate"]
        its = {score.sha256: score.role for score in scores if score.model == model}
        assert its == {sha256: role for sha256, role in roles.items() if role in {"calibration", "test"}}
    calibration = [score.score for score in scores if (score.model, score.role) == ("champion", "calibration")]
    assert searched["champion"]["threshold"] in calibration
    one = next(score for score in scores if score.model == "champion" and score.label != "good")
    model = Model.load(Path(searched["champion"]["model"]), threads=1)
    assert model.score(Path(one.path).read_bytes()).score == one.score


def test_a_damaged_table_of_scores_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").write_bytes(b"x")
    for name in ("scores.parquet", "absent.parquet"):
        with pytest.raises(ArtifactError, match=name):
            read_final_scores(tmp_path / name)


@pytest.fixture(scope="module")
def real(autoad: Run, searched: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = tmp_path_factory.mktemp("report") / "below" / "report.html"
    done = autoad("report", "small", "--output", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file}\n"
    return Page(file)


def test_the_report_of_a_search_tells_its_answer(real: Page, searched: dict[str, Any]) -> None:
    champion = searched["champion"]
    for told in (
        f"Use {champion['algorithm']} (trial {champion['trial']})",
        f"{champion['test']['image_auroc']:.3f}",
        f"{champion['default_patchcore']['image_auroc']:.3f}",
        f"{champion['threshold']:.4g}",
        "autoad score small/1 PICTURE",
        searched["dataset"]["hash"],
        *champion["test"]["by_defect"],
        *(note for note in searched["notes"]),
    ):
        assert told in real.text
    rows = re.findall(r"image_size \d+", real.text)
    assert len(rows) >= len(searched["leaderboard"])


def test_the_gallery_holds_the_pictures_with_their_heatmaps(
    real: Page, searched: dict[str, Any], state: Path, demo: Path
) -> None:
    scores = read_final_scores(state / "searches" / searched["search_id"] / "scores.parquet")
    tested = [score for score in scores if (score.model, score.role) == ("champion", "test")]
    wanted = [s for s in tested if s.is_anomalous or s.label != "good"]
    pictures = [its for tag, its in real.elements if tag == "img"]
    assert len(pictures) >= min(12, len(wanted))
    by_path = {str(picture.path): picture for picture in read_dataset(demo).pictures}
    first = pictures[0]
    assert first["alt"] is not None
    name = re.search(r"picture (\S+), labelled (\w+)", first["alt"])
    assert name is not None
    shown = [s for s in wanted if Path(s.path).name == name[1] and s.label == name[2]]
    close = []
    for score in shown:
        original = np.asarray(Image.open(by_path[score.path].path).convert("RGB"), dtype=float)
        assert first["src"] is not None
        data = base64.b64decode(first["src"].removeprefix("data:image/webp;base64,"))
        reduced = np.asarray(Image.open(io.BytesIO(data)).resize(original.shape[1::-1]), dtype=float)
        close.append(np.abs(original - reduced).mean())
    assert min(close) < 10, "the card shows the picture that it names"
    if read_manifest(Path(searched["champion"]["model"])).members[0].kind == "segmentation":
        assert sum("heatmap" in (its["alt"] or "") for its in pictures) == len(pictures) / 2


def test_nothing_comes_from_a_network(real: Page) -> None:
    assert all(address.startswith(("#", "data:image/webp;base64,")) for address in real.addresses())
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in real.elements}
    assert "url(" not in real.styles
    assert "@import" not in real.styles
    policy = next(its["content"] for _, its in real.elements if its.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_it_is_made_for_all_readers(real: Page) -> None:
    tags = dict(real.elements)
    assert tags["html"]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in real.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(its.get("alt") for tag, its in real.elements if tag == "img")
    named = [its for _, its in real.elements if its.get("role") in {"img", "region"}]
    assert named
    assert all(its["aria-label"] for its in named)
    ids = [its["id"] for _, its in real.elements if "id" in its]
    assert len(ids) == len(set(ids))
    targets = {address[1:] for address in real.addresses() if address.startswith("#")}
    assert targets <= set(ids)


def luminance(colour: str) -> float:
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_colours_stand_out_from_their_ground(real: Page) -> None:
    """WCAG 2: 4.5 for text, 3 for marks."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", real.styles, re.DOTALL)
    for theme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))

        def contrast(a: str, b: str, colours: dict[str, str] = colours) -> float:
            low, high = sorted((luminance(colours[a]), luminance(colours[b])))
            return (high + 0.05) / (low + 0.05)

        for name in ("text", "muted", "accent", "good", "bad"):
            for ground in ("surface", "raised"):
                assert contrast(name, ground) >= 4.5, (name, ground)
        assert contrast("text", "warn") >= 4.5
        for place in range(8):
            assert contrast(f"algorithm-{place}", "surface") >= 3


def test_names_and_labels_are_text_whatever_they_hold(made: Made, tmp_path: Path) -> None:
    file = write_report(made(label=HOSTILE, name=HOSTILE, notes=[HOSTILE]), tmp_path / "report.html")
    page = Page(file)
    assert page.text.count(HOSTILE) >= 4
    assert not any("onerror" in its or its.get("src") == "x" for _, its in page.elements)
    figures = json.loads(page.data)
    rows = figures["scores"]["layout"]["yaxis2"]["ticktext"]
    assert any(row.startswith("&lt;img src=x") for row in rows)
    assert "<" not in "".join(rows)
    assert any("&amp;&lt;i&gt;.png" in text for trace in figures["scores"]["data"] for text in trace.get("text", []))
    assert page.text.count("&<i>.png") > 0


def test_the_leaderboard_has_a_column_for_what_was_measured(made: Made, tmp_path: Path) -> None:
    plain = Page(write_report(made(), tmp_path / "plain.html"))
    assert not {"Model MB", "Machine", "Attempts"} & set(plain.heads)
    assert {"Rank", "Image AUROC", "ms", "Configuration"} <= set(plain.heads)


def test_new_fields_of_trials_are_shown(made: Made, tmp_path: Path) -> None:
    rows = rows_of(20)
    rows[3] = rows[3].model_copy(update={"model_mb": 12.34, "node": HOSTILE, "attempts": 2, "origin": "warm"})
    page = Page(write_report(made(rows=rows), tmp_path / "report.html"))
    assert {"Model MB", "Machine", "Attempts"} <= set(page.heads)
    assert "12.3" in page.text
    assert HOSTILE in page.text
    assert "earlier searches 1, the sampler 19" in page.text
    assert "1 min 30 s" in page.text


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_a_search_without_a_champion_gets_a_report_of_what_there_is(made: Made, tmp_path: Path, status: str) -> None:
    page = Page(write_report(made(champion=False, status=status), tmp_path / "report.html"))
    assert "there is no model to use yet" in page.text
    assert "Leaderboard" in page.text
    assert {"history", "pareto"} <= set(json.loads(page.data))


def test_a_search_that_has_not_begun_gets_a_report(made: Made, tmp_path: Path) -> None:
    page = Page(write_report(made(champion=False, rows=[], status="interrupted"), tmp_path / "report.html"))
    assert page.text.count("No trial was begun.") == 2


def test_what_is_gone_is_named(made: Made, tmp_path: Path) -> None:
    result = made()
    folder = tmp_path / "state" / "searches" / result.search_id
    for file in (folder / "scores.parquet", folder / "dataset.parquet", tmp_path / "state" / "optuna.db"):
        file.unlink()
    page = Page(write_report(result))
    assert page.text.count("cannot be read") == 3
    assert "optuna.db" in page.text
    assert not (tmp_path / "state" / "optuna.db").exists()
    assert (folder / "report.html").is_file()


def test_pictures_that_changed_since_are_counted_not_shown(made: Made, tmp_path: Path) -> None:
    result = made()
    scores = read_final_scores(tmp_path / "state" / "searches" / result.search_id / "scores.parquet")
    tested = [score for score in scores if score.model == "champion" and score.label != "good"]
    missed = [Path(score.path) for score in tested if not score.is_anomalous]
    missed[0].write_bytes(missed[1].read_bytes())
    missed[1].unlink()
    assert "2 could not be shown" in Page(write_report(result)).text


def test_a_hundred_and_fifty_trials_stay_small_and_quick(made: Made, tmp_path: Path) -> None:
    result = made(rows=rows_of(150))
    began = time.process_time()
    file = write_report(result, tmp_path / "report.html")
    assert time.process_time() - began < 8
    assert file.stat().st_size < 6 * 2**20, "Plotly's script is 4.6 MiB of it"


def test_a_report_for_others_does_not_say_where_anything_lies(made: Made, tmp_path: Path) -> None:
    result = made(notes=[f"skipped {tmp_path}/pictures/x.png: too small"])
    own = write_report(result, tmp_path / "own.html").read_text()
    assert str(tmp_path) in own
    page = write_report(result, tmp_path / "others.html", dataset="bottle/1").read_text()
    assert str(tmp_path) not in page
    assert "bottle/1" in page
    assert "skipped x.png: too small" in page


@pytest.mark.parametrize(
    ("method", "tile"),
    [
        ("conformal", "promised on average; 90 % bound 17.4 %; "),
        ("f1-max", "of the calibration pictures; 90 % bound 17.4 %; "),
    ],
)
def test_what_the_threshold_promises_and_realises_is_shown(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, tile: str
) -> None:
    monkeypatch.setattr("autoad.report.page.gallery", lambda _: ([], None))  # the artifact cannot score
    result = made()
    assert result.champion is not None
    make_artifact(Path(result.champion.model))
    changes = {"threshold_method": method, "false_positive_rate_upper": 0.174}
    changed = result.model_copy(update={"champion": result.champion.model_copy(update=changes)})
    text = Page(write_report(changed, tmp_path / "report.html")).text.replace("\N{NO-BREAK SPACE}", " ")
    assert tile in text
    assert "which can guarantee 10.0% at the least); at most 10.0% of good pictures lie above it on average" in text
