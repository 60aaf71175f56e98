"""Where the reports of searches are kept, so that any replica can show them."""

from __future__ import annotations

from autoad.files import FileStore
from autoad.settings import Settings

__all__ = ["report_store"]


def report_store(settings: Settings, project: str) -> FileStore:
    """The reports of a project, by their sha256: in the file store, or in the data folder where there is none."""
    return FileStore(settings.files_url or str(settings.data_dir / "files"), project, "reports")
