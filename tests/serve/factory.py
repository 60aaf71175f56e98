"""Registered models without a search: fitted, calibrated, with their parity set; and datasets without a client."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import autoad
from autoad.algorithms import get_algorithm
from autoad.data import Dataset, assign_roles
from autoad.data.catalog import Catalog
from autoad.database import Database
from autoad.features import choose_engine, head_precision
from autoad.models import Provenance, write_manifest
from autoad.models.parity import choose_parity, write_parity
from autoad.models.registry import Registry
from autoad.schema import DatasetEntry, FileEntry, ModelVersionEntry, TrialRow, UploadRequest
from autoad.search.candidate import Candidate
from autoad.search.fitting import fit_model
from autoad.search.trial import TrialTask
from autoad.settings import Settings

_RATE = 0.1


def add_model(
    settings: Settings, dataset: Dataset, name: str, algorithm: str, *, precision: str = "float32", **config: Any
) -> ModelVersionEntry:
    """Fit an algorithm on a dataset's train pictures and register it as the next version of ``name``."""
    roles = assign_roles(dataset)
    engine = choose_engine("auto", precision)
    task = TrialTask(
        train=roles.train,
        selection=roles.selection,
        labelled_weight=1.0,
        features_dir=settings.features_dir,
        engine=engine,
        precision=head_precision(engine),
        objective="image_auroc",
        epochs={},
        seed=0,
        timed=False,
    )
    defaults = dataclasses.asdict(get_algorithm(algorithm).Config())
    row = TrialRow(trial=0, algorithm=algorithm, config=defaults | config, status="complete", epochs_done=1)
    database = Database(settings)
    registry = Registry(database, settings)
    number = sum(len(model.versions) for model in registry.models())
    provenance = Provenance(
        code_version=autoad.__version__,
        search=f"made-{number}",
        trial=0,
        dataset_hash=dataset.hash,
        dataset_counts=dataset.counts(),
        evidence="labelled",
    )
    folder = settings.data_dir / f".made-{number}"
    model = fit_model(folder, name, Candidate((row,)), task, roles.train, provenance, threads=2)
    model, _, _ = model.calibrate([picture.read() for picture in roles.calibration], _RATE)
    write_manifest(folder, model.manifest)
    write_parity(folder, model, choose_parity(roles.selection, roles.calibration))
    try:
        return registry.register(folder, name)
    finally:
        database.close()


def make_state(folder: Path) -> Settings:
    """Settings of a data folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Settings(data_dir=folder)


def add_dataset(settings: Settings, name: str, source: Path, *, project: str = "default") -> DatasetEntry:
    """Send a folder, as clients do; the version that it becomes."""
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    sent = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
    files = [
        FileEntry(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for path, data in sent.items()
    ]
    frames = [hashlib.sha256(data).digest() + len(data).to_bytes(8, "big") + data for data in sent.values()]
    database = Database(settings)
    try:
        catalog = Catalog(database, settings)
        upload = catalog.begin_upload(name, UploadRequest(files=files), project)
        catalog.receive(name, upload.id, memoryview(b"".join(frames)), project)
        return catalog.commit(name, upload.id, actor="test", project=project)[0]
    finally:
        database.close()
