"""The Serve application: ingress replicas that read pictures and score them, and one control plane.

``autoad serve`` deploys :func:`build`; so do ``serve run serve/config.yaml`` and a RayService of KubeRay. A request
takes one hop: HAProxy to a replica, which holds the models itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from autoad.database import Database, Keys
from autoad.errors import AutoADError, StateError
from autoad.files import remove_leftovers
from autoad.models.registry import Registry
from autoad.serve.auth import Authenticator, internal_key, is_loopback
from autoad.serve.control import Control
from autoad.serve.exposition import Exposition
from autoad.serve.http import create_app
from autoad.serve.options import ServeOptions
from autoad.serve.scorer import Scorer
from autoad.serve.spawning import Spawner
from autoad.serve.supervisor import Supervisor
from autoad.settings import get_settings

__all__ = ["build"]

_CONTROL = "Control"
_INGRESS = "Scoring"
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 (only compared with)
_REPORT_SECONDS = 5.0  # writing them down takes milliseconds
_logger = logging.getLogger(__name__)


def build(options: ServeOptions) -> Application:
    """The application, ready to be deployed.

    Args:
        options: from the command line, or ``args`` in Serve's configuration file.
    """
    secret = secrets.token_urlsafe(32)  # by which the control plane's own requests are known
    control = serve.deployment(ControlPlane).options(
        name=_CONTROL, num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}
    )
    scoring = serve.deployment(serve.ingress()(Scoring)).options(
        name=_INGRESS,
        max_ongoing_requests=100_000,  # replicas have queues of their own, and say 429 when they are full
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus},
        **_scale(options),
    )
    name = secrets.token_hex(3)  # of this server, before the names of its replicas
    return scoring.bind(options, secret, name, control.bind(options, secret, name))


class Scoring:
    """A replica of the data plane, which is the ingress."""

    def __init__(self, options: ServeOptions, secret: str, name: str, control: DeploymentHandle) -> None:
        _stay_on_loopback(options)
        self._options = options
        self._secret = secret
        self._control = control
        self._name = name

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve calls for the routes."""
        database = Database()
        replica = f"{self._name}.{serve.get_replica_context().replica_id.unique_id}"
        registry = Registry(database)
        self._scorer = Scorer(registry, self._options, replica)
        remote = RemoteControl(self._control, replica, self._scorer.metrics.text)
        authenticator = Authenticator(
            Keys(database), database.project, loopback=is_loopback(self._options.host), internal=self._secret
        )
        return create_app(self._scorer, registry, remote, authenticator, self._options, database)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self._scorer.check()


class RemoteControl:
    """The control plane as a replica sees it: in another process, and perhaps just being started again."""

    def __init__(self, handle: DeploymentHandle, replica: str, metrics: Callable[[], bytes]) -> None:
        self._handle = handle
        self._replica = replica
        self._metrics = metrics

    async def call(self, method: str, *arguments: Any) -> Any:
        """What a method of :class:`Control` returns or raises there.

        Raises:
            StateError: its process has died; Serve starts another.
        """
        try:
            outcome = await self._handle.call.remote(method, *arguments)
        except (RayServeException, RayError) as error:
            raise StateError(
                f"the control plane does not answer ({type(error).__name__}); look at the model's route, and try again"
            ) from error
        if isinstance(outcome, AutoADError):
            raise outcome
        return outcome

    async def metrics(self, project: str | None) -> bytes:
        """The metrics of all replicas: this one's as they are, the others' as they were some seconds ago."""
        text = await asyncio.to_thread(self._metrics)
        try:
            result: bytes = await self._handle.metrics.remote(self._replica, text, project)
        except (RayServeException, RayError) as error:
            raise StateError(f"the control plane does not answer ({type(error).__name__}); try again") from error
        return result

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell the control plane this replica's metrics while the context lasts."""

        async def report() -> None:
            failed = False
            while True:
                try:
                    text = await asyncio.to_thread(self._metrics)
                    with contextlib.suppress(RayServeException, RayError):  # it is being started again
                        await self._handle.report.remote(self._replica, text)
                except Exception:
                    if not failed:
                        _logger.exception("the metrics cannot be told to the control plane; it is tried again")
                    failed = True
                await asyncio.sleep(_REPORT_SECONDS)

        task = asyncio.create_task(report())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class ControlPlane:
    """The process that :class:`Control` runs in."""

    async def __init__(self, options: ServeOptions, secret: str, name: str) -> None:  # type: ignore[misc]  # Serve awaits it
        _stay_on_loopback(options)
        host = "127.0.0.1" if options.host in _EVERYWHERE else options.host
        database, settings = Database(), get_settings()
        registry = Registry(database)
        self._control = Control(
            registry,
            f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}",
            lambda project: internal_key(secret, project),
            poll_seconds=options.poll_seconds,
            batch=min(options.max_batch, options.max_pictures),
            most_bytes=int(options.max_request_bytes),
            name=name,
        )
        self._exposition = Exposition()
        await self._control.tidy()
        threading.Thread(target=remove_leftovers, args=[settings.data_dir / "files"], daemon=True).start()
        supervisor = Supervisor(
            database,
            settings,
            registry,
            self._control,
            Spawner(settings, options.search_address),
            most=options.max_searches,
        )
        self._supervising = asyncio.create_task(supervisor.run())

    async def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of :class:`Control`, or the error that it raised on purpose, as a value."""
        try:
            return await getattr(self._control, method)(*arguments)
        except AutoADError as error:
            return error

    async def report(self, replica: str, metrics: bytes) -> None:
        """Take down a replica's metrics."""
        self._exposition.take(replica, metrics)

    async def metrics(self, replica: str, metrics: bytes, project: str | None) -> bytes:
        """All replicas' metrics; of models, only this project's, or all projects' for None."""
        self._exposition.take(replica, metrics)
        return await asyncio.to_thread(self._exposition.text, project)


def _stay_on_loopback(options: ServeOptions) -> None:
    """Keep Ray's own server in this replica, which has no authentication, from listening on every interface.

    Ray has no setting for it. With another host the machine is part of a network that is trusted (see docs/cluster.md).
    """
    if not is_loopback(options.host):
        return
    from ray.serve._private import replica

    original = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: original(server, address.replace("[::]", "127.0.0.1"))


def _scale(options: ServeOptions) -> dict[str, Any]:
    if options.max_replicas == options.replicas:
        return {"num_replicas": options.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.max_batch,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        }
    }
