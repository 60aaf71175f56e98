"""Settings, read from the environment (``AUTOAD_*``)."""

from __future__ import annotations

from pathlib import Path

from pydantic import ByteSize, Field, SecretStr, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from autoad.errors import UsageError

__all__ = ["DEFAULT_SERVER", "Settings", "get_settings"]

DEFAULT_SERVER = "http://127.0.0.1:8000"
"""Whom clients ask where nobody names a server."""


class Settings(BaseSettings):
    """What the environment decides.

    Attributes:
        data_dir: folder of everything that autoad keeps: database, feature store, models.
        weights_dir: folder of ``<backbone>.safetensors`` files that are preferred to all other weights.
        database_url: SQLAlchemy address of the metadata; empty for SQLite in ``data_dir``.
        files_url: where pictures are kept for workers of other nodes: ``s3://BUCKET/PREFIX`` or a folder; empty for the
            driver's node.
        features_limit: bytes that the feature store may take on this machine (``20GB``); None for half of what the disk
            would have free without it.
        memory_limit: bytes that trials may take together on this machine (``8GB``); None for what is free.
        database_patience: seconds that a search waits for metadata that cannot be written before it stops.
        server: address of the autoad server that commands and clients ask; empty where none is named.
        api_key: by which that server knows its caller.
        project: name under which datasets, searches and models are kept apart from other projects'.
    """

    model_config = SettingsConfigDict(env_prefix="AUTOAD_", frozen=True)

    data_dir: Path = Field(default_factory=lambda: Path.home() / ".autoad")
    weights_dir: Path | None = None
    database_url: str = ""
    files_url: str = ""
    features_limit: ByteSize | None = None
    memory_limit: ByteSize | None = None
    database_patience: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    server: str = ""
    api_key: SecretStr = SecretStr("")
    project: str = "default"

    @field_validator("data_dir", "weights_dir")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        """Workers run in folders of their own, and a model's address must hold everywhere."""
        return None if folder is None else folder.expanduser().absolute()

    @field_validator("features_limit", "memory_limit", mode="before")
    @classmethod
    def _size(cls, size: object, info: ValidationInfo) -> object:
        """Say by its own name what is wrong.

        Raises:
            UsageError: this is no size.
        """
        if size is None or size == "":
            return None
        try:
            parsed = TypeAdapter(ByteSize).validate_python(size)
        except ValidationError:
            parsed = None
        if not parsed or parsed < 0:
            name = f"AUTOAD_{str(info.field_name).upper()}"
            raise UsageError(f"{name} must be a size such as 20GB or 500MiB but got {size!r}")
        return parsed

    @property
    def sqlalchemy_url(self) -> str:
        """Where the metadata lives."""
        return self.database_url or f"sqlite:///{self.data_dir / 'autoad.db'}"

    @property
    def features_dir(self) -> Path:
        """The feature store of this node."""
        return self.data_dir / "features"

    @property
    def searches_dir(self) -> Path:
        """One folder a search: its dataset table, roles and synthetic defects."""
        return self.data_dir / "searches"

    @property
    def models_dir(self) -> Path:
        """One folder a saved model of the project."""
        return self.data_dir / "models" / self.project


def get_settings() -> Settings:
    """The settings as the environment is now (not cached: tests and workers change it)."""
    return Settings()
