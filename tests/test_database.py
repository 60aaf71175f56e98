import os
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from autoad.database import Database
from autoad.database._records import Base
from autoad.errors import UsageError
from autoad.schema import Metrics, TrialRow
from autoad.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def row(number: int, status: str = "running", **fields: object) -> TrialRow:
    return TrialRow(trial=number, algorithm="dfm", config={"stages": [2, 3]}, status=status, **fields)


def test_rows_survive_reopening(settings: Settings) -> None:
    database = Database(settings)
    database.add_search("a1", "bottle", "hash", {"seed": 0}, {"notes": []})
    database.write_trial("a1", row(1))
    database.write_trial("a1", row(0, "complete", validation=Metrics(image_auroc=0.75), seconds=1.5))
    database.update_search("a1", status="complete", summary={"notes": ["done"]})
    database.close()

    reopened = Database(settings)
    assert [(t.trial, t.status, t.validation.image_auroc) for t in reopened.trials("a1")] == [
        (0, "complete", 0.75),
        (1, "running", None),
    ]
    search = reopened.find_search()
    assert (search.id, search.status, search.summary) == ("a1", "complete", {"notes": ["done"]})
    assert search.finished is not None
    assert reopened.find_search("bottle").id == reopened.find_search("a1").id
    reopened.close()


def test_projects_are_apart(settings: Settings, tmp_path: Path) -> None:
    one, other = Database(settings), Database(Settings(data_dir=tmp_path, project="other"))
    one.add_search("a1", "bottle", "hash", {}, {})
    other.add_search("b1", "bottle", "hash", {}, {})
    assert (one.find_search("bottle").id, other.find_search("bottle").id) == ("a1", "b1")
    one.write_trial("a1", row(0))
    assert other.trials("a1") == []
    with pytest.raises(UsageError, match="no search 'a1'"):
        other.find_search("a1")
    one.close()
    other.close()


def test_name_is_taken_and_search_is_missing(settings: Settings) -> None:
    database = Database(settings)
    with pytest.raises(UsageError, match="no search yet"):
        database.find_search()
    database.add_search("a1", "bottle", "hash", {}, {})
    with pytest.raises(UsageError, match="named 'bottle' already"):
        database.add_search("a2", "bottle", "hash", {}, {})
    with pytest.raises(UsageError, match="no search 'bottel'; the newest are: bottle"):
        database.find_search("bottel")
    database.close()


def test_migrations_make_the_tables_of_the_records(settings: Settings) -> None:
    Database(settings).close()
    engine = sqlalchemy.create_engine(settings.sqlalchemy_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=f"below '{tmp_path}{os.sep}file.*AUTOAD_DATA_DIR"):
        Database(Settings(data_dir=tmp_path / "file" / "below"))


@pytest.mark.parametrize("url", ["foo", "postgresql+nodriver://host/db", "sqlite:////nowhere/at/all.db"])
def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="AUTOAD_DATABASE_URL"):
        Database(Settings(data_dir=tmp_path, database_url=url))


def test_folders_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(data_dir=Path("state"), weights_dir=Path("w")).features_dir == tmp_path / "state" / "features"
    assert Settings(data_dir=Path("~/x")).data_dir == Path.home() / "x"
