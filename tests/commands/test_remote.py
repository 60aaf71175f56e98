"""Commands on a server: the command line is the SDK there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoad.client import Client
from autoad.schema import DatasetEntry, Difference, PromotionVerdict, SearchResult, SkippedFile
from tests.client.service import Service, score_of, some_events
from tests.commands.conftest import Command


@pytest.fixture
def bottle(service: Service) -> DatasetEntry:
    return service.new_version("bottle", "0" * 64, 8, 100, "")[1]


@pytest.fixture
def there(run: Command, address: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command where the environment names a server."""
    monkeypatch.setenv("AUTOAD_SERVER", address)
    return run


# search


def test_a_search_sends_its_pictures_follows_and_shows_the_result(
    there: Command, service: Service, folder: Path, address: str
) -> None:
    done = there("search", "--data", folder, "--time", "30m", "--algorithms", "dfm, padim", "--name", "first")
    assert done.code == 0, done.stderr
    sent = json.loads(service.last("/searches").body)
    assert (sent["dataset"], sent["seconds"], sent["algorithms"]) == ("bottle/1", 1800, ["dfm", "padim"])
    assert (sent["model"], sent["promote_when"], sent["warm_start"]) == ("", "never", True)
    told = [line.strip() for line in done.stderr.splitlines()]
    for line in (
        "hashing 9 files",
        "sending 9 of 9 files",
        "committed as bottle/1",
        f"search first (s1) on bottle/1 at {address}",
        "running",
        "trial 2",
        "the search is complete",
        "report: autoad report first",
    ):
        assert line in told
    for line in ("first  bottle/1 (8 good), 12s", "autoad score bottle/2 PICTURE...", "champion (dfm, trial 0)"):
        assert line in done.stdout
    assert "let it answer over HTTP: autoad promote bottle --version 2\n" in done.stdout


def test_a_dataset_of_the_server_is_searched_by_its_name(
    run: Command, service: Service, bottle: DatasetEntry, address: str
) -> None:
    done = run("search", "--data", "bottle/1", "--server", address, "--trials", 3, "--json", "--promote-when", "better")
    assert done.code == 0
    assert SearchResult.model_validate_json(done.stdout).search_id == "s1"
    assert "there is no bottle/1 here: searching the server's dataset of that name" in done.stderr
    assert "/uploads" not in str([one.path for one in service.asked])
    sent = json.loads(service.last("/searches").body)
    assert (sent["trials"], sent["seconds"], sent["promote_when"]) == (3, None, "better")
    assert f"report: autoad report bottle-search-1 --server {address}" in done.stderr
    unknown = run("search", "--data", "botle", "--server", address)
    assert (unknown.code, "unknown dataset 'botle'" in unknown.stderr) == (1, True)
    absent = run("search", "--data", "./absent", "--server", address)
    assert (absent.code, "must be an existing folder, manifest or archive" in absent.stderr) == (2, True)


def test_a_search_need_not_be_followed(run: Command, service: Service, bottle: DatasetEntry, address: str) -> None:
    done = run("search", "--data", "bottle", "--no-follow", "--server", address)
    assert done.stdout == "search bottle-search-1 (s1) is queued\n"
    assert f"follow it with: autoad searches bottle-search-1 --follow --server {address}" in done.stderr
    shown = run("search", "--data", "bottle", "--no-follow", "--json", "--server", address)
    assert json.loads(shown.stdout)["id"] == "s2"


@pytest.mark.parametrize(
    "option",
    [
        ("--resume", "x"),
        ("--space", "x"),
        ("--trial-timeout", "5m"),
        ("--engine", "torch"),
        ("--precision", "float32"),
        ("--mlflow",),
        ("--address", "host:1"),
    ],
    ids=" ".join,
)
def test_what_a_server_decides_itself_is_refused_by_name(
    there: Command, service: Service, option: tuple[str, ...]
) -> None:
    done = there("search", "--data", "bottle", *option)
    assert done.code == 2
    assert f"{option[0]} cannot be given to a server" in done.stderr
    assert service.asked == []


@pytest.mark.parametrize("option", [("--promote-when", "always"), ("--no-follow",)], ids=" ".join)
def test_what_only_a_server_does_needs_one(there: Command, service: Service, option: tuple[str, ...]) -> None:
    done = there("search", "--data", "bottle", *option, "--server", "")
    assert done.code == 2
    assert f"{option[0]} is for a search on a server" in done.stderr
    missing = there("search")
    assert (missing.code, "give --data FOLDER" in missing.stderr) == (2, True)
    wrong = there("search", "--data", "bottle", "--promote-when", "maybe")
    assert (wrong.code, "promote_when: " in wrong.stderr) == (2, True)
    assert service.asked == []


def test_how_a_search_ends_is_the_exit_code(
    there: Command, service: Service, bottle: DatasetEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(**update: object) -> tuple[int, str]:
        real = Service.submit

        def submit(self: Service, request: object, key: str) -> object:
            entry = real(self, request, key)  # type: ignore[arg-type]
            events = some_events(entry)
            events[-1] = events[-1].model_copy(update={"search": events[-1].search.model_copy(update=update)})
            self.events[entry.id] = events
            return entry

        with monkeypatch.context() as patch:
            patch.setattr(Service, "submit", submit)
            done = there("search", "--data", "bottle")
        return done.code, done.stderr

    code, told = search(status="failed", error="the disk is full")
    assert (code, "error: the disk is full" in told) == (1, True)
    code, told = search(status="failed", error="no trial succeeded", best=None)
    assert (code, "error: no trial succeeded" in told) == (3, True)
    assert search(status="cancelled")[0] == 130
    verdict = PromotionVerdict(
        state="kept",
        reason="not better by more than chance",
        compared_with=1,
        pictures=20,
        difference=Difference(image_auroc=0.01, low=-0.1, high=0.1),
    )
    code, told = search(promotion=verdict)
    assert (code, "promotion: kept: not better by more than chance" in told) == (0, True)
    service.fail("/leaderboard", 404, code="unknown_name")
    code, told = search(status="cancelled")
    assert (code, "was cancelled" in told) == (130, True)


def test_control_c_ends_the_following_and_not_the_search(
    service: Service, bottle: DatasetEntry, address: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "autoad.cli", "search", "--data", "bottle", "--name", "long", "--server", address]
    environment = os.environ | {"AUTOAD_DATA_DIR": str(tmp_path), "COLUMNS": "200"}
    real = service.submit

    def submit(request: object, key: str) -> object:
        entry = real(request, key)  # type: ignore[arg-type]
        service.events[entry.id] = service.events[entry.id][:2]
        return entry

    service.submit = submit  # type: ignore[assignment, method-assign]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        assert process.stderr is not None
        line = ""
        while "trial 0" not in line:
            line = process.stderr.readline()
            assert line, "it ended"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert f"the search goes on at the server; follow it with: autoad searches long --follow --server {address}" in err
    assert f"end it with: autoad searches long --cancel --server {address}" in err
    assert "Traceback" not in err
    assert service.searches["s1"].status == "running"


# searches, leaderboard, report


def test_searches_of_a_server(
    there: Command, service: Service, bottle: DatasetEntry, address: str, tmp_path: Path
) -> None:
    empty = there("searches")
    assert "there is no search yet" in empty.stdout
    none = there("leaderboard")
    assert (none.code, "there is no search yet at" in none.stderr) == (2, True)
    with Client(address) as client:
        for number in range(3):
            client.search(bottle, name=f"search-{number}")
        client.find_search("search-2").wait()
    listed = there("searches").stdout.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ["search-2", "search-1", "search-0"]
    assert "dfm bottle/2" in listed[1]
    assert len(json.loads(there("searches", "--limit", 2, "--json").stdout)) == 2
    assert json.loads(there("searches", "search-1", "--json").stdout)[0]["status"] == "queued"
    followed = there("searches", "search-1", "--follow")
    assert (followed.code, followed.stderr.count("trial ")) == (0, 3)
    newest = there("searches", "--follow")
    assert (newest.code, "search-2" in newest.stdout) == (0, True)
    cancelled = there("searches", "search-0", "--cancel", "--json")
    assert json.loads(cancelled.stdout)[0]["status"] == "cancelled"
    assert "give its name or id" in there("searches", "--cancel").stderr
    assert "one after the other" in there("searches", "search-0", "--cancel", "--follow").stderr
    assert "name one with --server" in there("searches", "search-0", "--cancel", "--server", "").stderr
    assert json.loads(there("leaderboard", "search-2", "--json").stdout)["search_id"] == "s3"
    assert "champion (dfm, trial 0)" in there("leaderboard").stdout
    file = tmp_path / "r.html"
    assert there("report", "search-2", "--output", file).stdout == f"{file}\n"
    assert file.read_text() == "<h1>search-2</h1>"
    missing = there("searches", "absent")
    assert (missing.code, "unknown search 'absent'" in missing.stderr) == (1, True)


def test_a_report_is_written_where_one_is(
    there: Command, service: Service, bottle: DatasetEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there("search", "--data", "bottle", "--name", "first", "--no-follow")
    assert json.loads(there("report", "--json").stdout) == {"report": "first.html"}
    assert (tmp_path / "first.html").read_text() == "<h1>first</h1>"


# score


def test_pictures_are_scored_with_heatmaps(there: Command, service: Service, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    while len(pictures) < 4:
        file = tmp_path / f"{len(pictures)}.png"
        Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(file)
        pictures.append(file)
    maps = tmp_path / "maps"
    done = there("score", "bottle/2", *pictures, "--heatmaps", maps, "--json")
    assert done.code == 0, done.stderr
    scored = json.loads(done.stdout)
    values = [score_of(file.read_bytes()) for file in pictures]
    assert [one["score"] for one in scored] == values
    assert [one["picture"] for one in scored] == [str(file) for file in pictures]
    assert {one["model"] for one in scored} == {"bottle/2"}
    assert {one["is_anomalous"] for one in scored} == {True, False}
    for one in scored:
        original = np.asarray(Image.open(one["picture"]))
        drawn = np.asarray(Image.open(one["heatmap"]))
        assert drawn.shape == original.shape
        assert (drawn == original).all() == (not one["is_anomalous"]), "a normal picture stays as it is"
    assert service.count("POST", "/score") == 4, "maps come with the scores"
    shown = there("score", "bottle", pictures[0], "--no-heatmaps")
    assert ("good" in shown.stdout) or ("ANOMALOUS" in shown.stdout)
    assert service.last("/score").query["map"] == "none"


def test_what_cannot_be_read_is_named_and_the_rest_scored(there: Command, service: Service, tmp_path: Path) -> None:
    for name, data in (("good.png", b"flat 1"), ("bad.png", b"bad"), ("last.png", b"flat 2")):
        (tmp_path / name).write_bytes(data)
    names = ("good.png", "bad.png", "absent.png", "last.png")
    done = there("score", "bottle", *(tmp_path / name for name in names), "--json", "--heatmaps", tmp_path / "maps")
    assert done.code == 1
    assert [Path(one["picture"]).name for one in json.loads(done.stdout)] == ["good.png", "last.png"]
    assert [one["heatmap"] for one in json.loads(done.stdout)] == [None, None], "a model without a map"
    assert f"{tmp_path}/bad.png: is no PNG" in done.stderr
    assert f"{tmp_path}/absent.png cannot be read (No such file or directory)\n" in done.stderr
    unknown = there("score", "botle", tmp_path / "good.png")
    assert (unknown.code, "unknown model 'botle'" in unknown.stderr) == (1, True)


# models, datasets


def test_models_of_a_server(there: Command, service: Service) -> None:
    assert json.loads(there("models", "--json").stdout)[0]["name"] == "bottle"
    assert "bottle" in there("models").stdout
    assert "models:/bottle/VERSION" in there("models", "bottle").stdout
    assert json.loads(there("models", "bottle", "--json").stdout)["route"]["champion"] == 1
    assert there("delete", "bottle", 2, "--reason", "a try").stdout == "bottle: version 2 is deleted\n"
    assert service.last("/versions/2").query == {"reason": "a try"}
    refused = there("delete", "bottle", 1)
    assert (refused.code, "cannot be deleted" in refused.stderr) == (1, True)


def test_datasets_are_sent_listed_shown_and_labelled(
    there: Command, service: Service, folder: Path, address: str
) -> None:
    assert "there is no dataset yet; send one with: autoad datasets submit FOLDER" in there("datasets").stdout
    done = there("datasets", "submit", folder, "--note", "from line 3")
    assert done.stdout.startswith("bottle/1: 9 good")
    assert "search it with: autoad search --data bottle/1\n" in done.stdout
    again = there("datasets", "submit", folder, "--name", "flask", "--json", "--server", address)
    assert json.loads(again.stdout)["name"] == "flask"
    listed = there("datasets").stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [["bottle", "1", "9"], ["flask", "1", "9"]]
    assert "from line 3" in listed[1]
    done = there("datasets", "label", "bottle", folder / "test/scratch/0.png", "good", "--note", "wrong")
    assert done.stdout == f"bottle/2: {folder}/test/scratch/0.png is good\n"
    assert service.last("/examples").query == {"label": "good", "note": "wrong"}
    mask = folder / "train/good/0.png"
    done = there("datasets", "label", "bottle", folder / "test/scratch/0.png", "scratch", "--mask", mask, "--json")
    assert json.loads(done.stdout)["version"] == 3
    assert b'name="mask"' in service.last("/examples").body
    service.datasets["bottle"][-1] = service.datasets["bottle"][-1].model_copy(
        update={"skipped": [SkippedFile(path=f"{n}.txt", reason="is no picture") for n in range(30)]}
    )
    for arguments in (("bottle",), ("show", "bottle"), ("--server", address, "bottle")):
        shown = there("datasets", *arguments)
        assert [line.split()[1] for line in shown.stdout.splitlines()[1:4]] == ["3", "2", "1"]
        assert "19.txt: is no picture\n  and 10 more" in shown.stdout
    assert len(json.loads(there("datasets", "bottle/1", "--json").stdout)) == 1
    assert len(json.loads(there("datasets", "bottle/1", "--pictures", "--json").stdout)) == 9
    assert "train/good/7.png" in there("datasets", "show", "bottle/1", "--pictures").stdout
    assert there("datasets", "--pictures").code == 2
    missing = there("datasets", "absent")
    assert (missing.code, "unknown dataset 'absent'" in missing.stderr) == (1, True)
    assert "submit" in there("datasets", "--help").stdout


def test_what_was_left_out_of_a_dataset_is_told(
    there: Command, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = service.new_version

    def new_version(*arguments: object) -> object:
        status, entry = real(*arguments)  # type: ignore[arg-type]
        skipped = [SkippedFile(path=f"{number}.png", reason="is damaged") for number in range(25)]
        return status, entry.model_copy(update={"skipped": skipped})

    monkeypatch.setattr(service, "new_version", new_version)
    done = there("datasets", "submit", folder)
    assert "left out: 0.png: is damaged" in done.stderr
    assert "left out: 5 more" in done.stderr


def test_no_server_is_exit_code_4(run: Command, waits: list[float], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    for command in (
        ("searches",),
        ("models",),
        ("datasets",),
        ("leaderboard",),
        ("search", "--data", "bottle"),
        ("search", "--data", tmp_path),
        ("score", "bottle", tmp_path / "x.png"),
    ):
        assert run(*command, "--server", "http://127.0.0.1:9").code == 4, command
    wrong = run("models", "--server", "127.0.0.1:9")
    assert (wrong.code, "must be an address such as" in wrong.stderr) == (2, True)


def test_a_key_that_is_refused_says_so(there: Command, service: Service) -> None:
    service.api_key = "autoad_1_2"
    refused = there("models")
    assert (refused.code, "an API key is needed" in refused.stderr) == (1, True)
