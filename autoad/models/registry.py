"""The registry: numbered versions of models, and which of them answers.

Rows of the database are the truth; files only back them up. A version is a row and the folder
``models/PROJECT/NAME/VERSION`` with the files whose sha256 the row names. With a file store (``AUTOAD_FILES_URL``) the
files also lie there by their sha256, and a machine that has no such folder fetches it. Aliases move in one transaction,
so whoever dies in the middle leaves the old state or the new one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

from autoad.database import Database, ModelTables, ModelVersion, RouteConflictError, aware
from autoad.errors import ArtifactError, UnknownNameError, UsageError
from autoad.models._addresses import ALIASES, check_model_name, parse_address
from autoad.models._files import VersionFiles
from autoad.models.artifact import Manifest, read_manifest
from autoad.schema import Metrics, ModelEntry, ModelVersionEntry, ReplicaEntry, RouteEntry
from autoad.settings import Settings, get_settings

__all__ = ["Registry"]

_Change = Callable[[RouteEntry], Any]


class Registry:
    """The models of one database.

    Where a method takes a ``project``, None is the database's own.

    Args:
        database: with versions, routes and replicas.
        settings: where artifacts lie; from the environment by default.
    """

    def __init__(self, database: Database, settings: Settings | None = None) -> None:
        settings = settings or get_settings()
        self._default_project = database.project
        self._tables = ModelTables(database)
        self._files = VersionFiles(settings)

    # Versions

    def register(self, folder: Path, name: str, *, project: str | None = None) -> ModelVersionEntry:
        """Take a finished artifact over as the next version of a model.

        A trial of a search is registered once, however often this is called for it: its process may have been killed
        between this and its last word to the database.

        Args:
            folder: of the artifact, on the same disk as the data folder; it is moved.
            name: of the model, which need not exist yet.
            project: whose model it becomes.

        Raises:
            UsageError: the name cannot be one.
            ArtifactError: the folder is no finished artifact.
            FileStoreError: the file store cannot be written.
        """
        project = project or self._default_project
        check_model_name(name)
        manifest = read_manifest(folder)
        if manifest.calibration is None:
            raise ArtifactError(f"{str(folder)!r} was never calibrated, so it cannot be registered; search again")
        source = manifest.provenance
        known = self.made_of(source.search, source.trials, name, project=project)
        if known is not None:
            shutil.rmtree(folder, ignore_errors=True)
            return known
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        files = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
        self._files.upload(project, contents.values())
        with self._tables.new_version(project, name) as (session, number):
            known = self.made_of(source.search, source.trials, name, project=project)
            if known is not None:  # by whoever has taken the search over; the number is given to nobody
                shutil.rmtree(folder, ignore_errors=True)
                return known
            row = ModelVersion(
                project=project,
                name=name,
                version=number,
                algorithm=manifest.algorithm,
                files=files,
                size=sum(map(len, contents.values())),
                manifest=manifest.model_dump(mode="json"),
                search_id=source.search,
                trial=source.trial,
                dataset_hash=source.dataset_hash,
                code_version=source.code_version,
            )
            session.add(row)
            session.flush()
            self._files.take(folder, project, name, number)
        return self._entry(row, self._tables.route(project, name))

    def made_of(
        self, search: str, trials: Sequence[int], name: str, *, project: str | None = None
    ) -> ModelVersionEntry | None:
        """The version of a model that a search has already made of a trial, or of several; None if it has not."""
        project = project or self._default_project
        for row in self._tables.of_trial(project, name, search, trials[0]):
            if (row.manifest["provenance"].get("members") or [row.trial]) == list(trials):
                return self._entry(row, self._tables.route(project, name))
        return None

    def has(self, name: str, project: str | None = None) -> bool:
        """Whether there is a version of that model."""
        return bool(self._tables.versions(project or self._default_project, name))

    def check_store(self) -> None:
        """See that the file store, if there is one, can be reached: before a search rather than after it.

        Raises:
            UsageError: ``AUTOAD_FILES_URL`` is no address.
            FileStoreError: it cannot be reached.
        """
        self._files.check(self._default_project)

    def models(self, project: str | None = None, *, histories: bool = True) -> list[ModelEntry]:
        """All models, by name; without ``histories`` theirs are left empty, which saves a query for each."""
        project = project or self._default_project
        by_name: defaultdict[str, list[ModelVersion]] = defaultdict(list)
        for row in self._tables.versions(project):
            by_name[row.name].append(row)
        routes = self._tables.routes()
        return [
            self._model(name, rows, routes.get((project, name), self._no_route(project, name)), history=histories)
            for name, rows in sorted(by_name.items())
        ]

    def model(self, name: str, project: str | None = None) -> ModelEntry:
        """One model.

        Raises:
            UnknownNameError: there is no such model.
        """
        project = project or self._default_project
        rows = self._tables.versions(project, name)
        if not rows:
            raise UnknownNameError("model", name, {row.name for row in self._tables.versions(project)})
        return self._model(name, rows, self._tables.route(project, name))

    def resolve(self, address: str, project: str | None = None) -> ModelVersionEntry:
        """The version that an address names: ``bottle``, ``bottle/3``, ``bottle@previous``, ``models:/bottle/3``.

        A name alone is the champion, or the newest version where nothing was promoted yet.

        Raises:
            UsageError: it is no address, or there is no such model, version or alias.
        """
        parsed = parse_address(address)
        model = self.model(parsed.name, project)
        version = parsed.version
        if parsed.alias is not None:
            version = getattr(model.route, parsed.alias)
            if version is None:
                raise UsageError(f"no version of {parsed.name!r} is {parsed.alias}; promote one with: autoad promote")
        if version is None:
            version = model.route.champion or model.versions[0].version
        for entry in model.versions:
            if entry.version == version:
                return entry
        raise UnknownNameError(
            f"version of {parsed.name!r}", str(version), [str(one.version) for one in model.versions]
        )

    def open(self, name: str, version: int, project: str | None = None) -> Path:
        """The folder of a version's artifact on this machine, with the files that were registered.

        Raises:
            UnknownNameError: there is no such version.
            ArtifactError: a file is missing or damaged here, and the file store does not have it.
        """
        project = project or self._default_project
        row = self._tables.version(project, name, version)
        if row is None:
            numbers = [str(one.version) for one in self._tables.versions(project, name)]
            raise UnknownNameError(f"version of {name!r}", str(version), numbers)
        return self._files.get(project, name, version, row.files)

    def delete(self, name: str, version: int, *, reason: str, actor: str, project: str | None = None) -> None:
        """Delete a version; its number is never given again.

        Raises:
            UnknownNameError: there is no such version.
            UsageError: it serves: it is champion, previous, canary, shadow, or being promoted.
        """
        project = project or self._default_project

        def decide(route: RouteEntry) -> Any:
            self._existing(project, name, version)
            for role in (*ALIASES, "staged"):
                if getattr(route, role) == version:
                    raise UsageError(
                        f"version {version} of {name!r} is {role} and cannot be deleted; promote another, or end that, "
                        "first"
                    )
            return {}, ("delete", version, None)

        self._existing(project, name, version)
        self._tables.change(
            project,
            name,
            decide,
            reason=reason,
            actor=actor,
            also=lambda session: session.delete(session.get_one(ModelVersion, (project, name, version))),
        )
        self._files.remove(project, name, version)

    # Routes

    def routes(self) -> dict[tuple[str, str], RouteEntry]:
        """All routes of all projects, by project and name."""
        return self._tables.routes()

    def mark(self) -> tuple[int, int]:
        """Cheap, and different after any change of any route."""
        return self._tables.mark()

    def stage(self, name: str, version: int, project: str | None = None) -> RouteEntry:
        """Have every replica load a version, because it is about to be promoted."""
        project = project or self._default_project
        self._existing(project, name, version)

        def decide(_: RouteEntry) -> Any:
            self._existing(project, name, version)  # it may have been deleted since
            return {"staged": version}, None

        return self._tables.change(project, name, decide)

    def unstage(self, name: str, version: int, project: str | None = None) -> RouteEntry:
        """Take that back, unless another version has been staged since."""
        return self._tables.change(
            project or self._default_project,
            name,
            lambda route: ({"staged": None if route.staged == version else route.staged}, None),
        )

    def promote(
        self,
        name: str,
        version: int,
        *,
        reason: str,
        actor: str,
        project: str | None = None,
        instead_of: int | EllipsisType | None = ...,
    ) -> RouteEntry:
        """Make a version the champion, and the champion the previous one. Only the alias moves; checks come before.

        Args:
            name: of the model.
            version: its number.
            reason: kept in the history.
            actor: likewise.
            project: whose model it is.
            instead_of: the only champion whose place it may take, None for that of nobody; by default any.

        Raises:
            UsageError: there is no such version, it is the champion already, or another is being promoted.
            RouteConflictError: another champion than ``instead_of`` serves.
        """
        project = project or self._default_project
        self._existing(project, name, version)

        def decide(route: RouteEntry) -> Any:
            self._existing(project, name, version)
            _check_staged(route, version)
            if route.champion == version:
                raise UsageError(f"version {version} of {name!r} is the champion already")
            if instead_of is not ... and route.champion != instead_of:
                raise RouteConflictError(f"version {route.champion} of {name!r} serves meanwhile, not {instead_of}")
            fields: dict[str, Any] = {"champion": version, "previous": route.champion, "staged": None}
            if route.canary == version:
                fields |= {"canary": None, "canary_share": 0.0}
            if route.shadow == version:
                fields["shadow"] = None
            return fields, ("promote", route.champion, version)

        return self._tables.change(project, name, decide, reason=reason, actor=actor)

    def rollback(self, name: str, *, reason: str, actor: str, project: str | None = None) -> RouteEntry:
        """Let champion and previous change places; a canary ends.

        Raises:
            UsageError: there is no previous champion.
        """

        def decide(route: RouteEntry) -> Any:
            if route.previous is None:
                raise UsageError(f"{name!r} has no previous champion to go back to")
            fields: dict[str, Any] = {
                "champion": route.previous,
                "previous": route.champion,
                "canary": None,
                "canary_share": 0.0,
            }
            if route.shadow == route.previous:
                fields["shadow"] = None
            return fields, ("rollback", route.champion, route.previous)

        return self._change(name, decide, reason, actor, project)

    def set_canary(
        self, name: str, version: int, share: float, *, reason: str, actor: str, project: str | None = None
    ) -> RouteEntry:
        """Let a version answer a share of the requests instead of the champion.

        Raises:
            UsageError: there is no such version, or no champion beside it, or the share is none.
        """
        if not 0 < share < 1:
            raise UsageError(f"a canary's share of the requests must lie between 0 and 1 but got {share}")
        return self._beside(name, version, "canary", {"canary": version, "canary_share": share}, reason, actor, project)

    def set_shadow(self, name: str, version: int, *, reason: str, actor: str, project: str | None = None) -> RouteEntry:
        """Let a version score beside the champion, unseen.

        Raises:
            UsageError: there is no such version, or no champion beside it.
        """
        return self._beside(name, version, "shadow", {"shadow": version}, reason, actor, project)

    def end_canary(self, name: str, *, reason: str, actor: str, project: str | None = None) -> RouteEntry:
        """Let the champion answer all requests again."""

        def decide(route: RouteEntry) -> Any:
            line = None if route.canary is None else ("end_canary", route.canary, None)
            return {"canary": None, "canary_share": 0.0}, line

        return self._change(name, decide, reason, actor, project)

    def end_shadow(self, name: str, *, reason: str, actor: str, project: str | None = None) -> RouteEntry:
        """Score by the champion alone again."""

        def decide(route: RouteEntry) -> Any:
            return {"shadow": None}, None if route.shadow is None else ("end_shadow", route.shadow, None)

        return self._change(name, decide, reason, actor, project)

    # Replicas

    def beat(self, replica: str, loaded: Sequence[str], failed: dict[str, str]) -> None:
        """Say that a replica lives, which versions it holds (``PROJECT/NAME/VERSION``), and which it could not load."""
        self._tables.beat(replica, loaded, failed)

    def leave(self, replica: str) -> None:
        """Say that a replica ends."""
        self._tables.leave(replica)

    def replicas(self, seconds: float) -> list[ReplicaEntry]:
        """Those that have given a sign of life within so many seconds."""
        return self._tables.replicas(seconds)

    # Within

    def _change(self, name: str, decide: _Change, reason: str, actor: str, project: str | None) -> RouteEntry:
        project = project or self._default_project
        self.model(name, project)
        return self._tables.change(project, name, decide, reason=reason, actor=actor)

    def _beside(
        self,
        name: str,
        version: int,
        role: Any,
        fields: dict[str, Any],
        reason: str,
        actor: str,
        project: str | None,
    ) -> RouteEntry:
        project = project or self._default_project
        self._existing(project, name, version)

        def decide(route: RouteEntry) -> Any:
            self._existing(project, name, version)
            _check_staged(route, version)
            if route.champion is None or route.champion == version:
                raise UsageError(f"version {version} of {name!r} cannot be {role} without another champion beside it")
            return fields | {"staged": None}, (role, getattr(route, role), version)

        return self._tables.change(project, name, decide, reason=reason, actor=actor)

    def _existing(self, project: str, name: str, version: int) -> ModelVersion:
        row = self._tables.version(project, name, version)
        if row is None:
            numbers = [str(entry.version) for entry in self.model(name, project).versions]
            raise UnknownNameError(f"version of {name!r}", str(version), numbers)
        return row

    @staticmethod
    def _no_route(project: str, name: str) -> RouteEntry:
        return RouteEntry(project=project, name=name, generation=0)

    def _model(self, name: str, rows: Sequence[ModelVersion], route: RouteEntry, *, history: bool = True) -> ModelEntry:
        versions = [self._entry(row, route) for row in rows]
        lines = self._tables.history(route.project, name) if history else []
        return ModelEntry(name=name, route=route, versions=versions, history=lines)

    @staticmethod
    def _entry(row: ModelVersion, route: RouteEntry) -> ModelVersionEntry:
        manifest = Manifest.model_validate(row.manifest)
        calibration, metrics = manifest.calibration, manifest.metrics
        names = Metrics.model_fields
        return ModelVersionEntry(
            name=row.name,
            version=row.version,
            algorithm=row.algorithm,
            aliases=[alias for alias in ALIASES if getattr(route, alias) == row.version],
            search=row.search_id,
            trial=row.trial,
            dataset_hash=row.dataset_hash,
            code_version=row.code_version,
            created=aware(row.created),
            size=row.size,
            threshold=None if calibration is None else calibration.threshold,
            threshold_method=None if calibration is None else calibration.method,
            false_positive_rate=None if calibration is None else calibration.rate,
            false_positive_rate_upper=None if calibration is None else calibration.rate_upper,
            validation=None if metrics is None else metrics.validation,
            test=None if metrics is None else Metrics(**metrics.test.model_dump(include=set(names))),
        )


def _check_staged(route: RouteEntry, version: int) -> None:
    """Refuse to move an alias while another version is being checked: what was staged first is decided first.

    Raises:
        RouteConflictError: one is.
    """
    if route.staged not in (None, version):
        raise RouteConflictError(
            f"version {route.staged} of {route.name!r} is being promoted; wait until that has ended"
        )
