from __future__ import annotations

import os
import sys
import types

import pytest

from autoad.console.devices import DevicesMeter, Gpu


def test_memory_and_cores_are_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    devices = DevicesMeter().read()
    with open("/proc/meminfo") as file:
        kilobytes = {name.rstrip(":"): int(amount) for name, amount, *_ in map(str.split, file)}
    assert len(devices.cores) == os.cpu_count()
    assert devices.memory_total == kilobytes["MemTotal"] * 1024
    assert devices.memory_used == pytest.approx(
        1024 * (kilobytes["MemTotal"] - kilobytes["MemAvailable"]), rel=0.2, abs=2**28
    )
    assert devices.gpus == ()


class FakeNvml(types.ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, *, driver: bool = True, lost: bool = False) -> None:
        super().__init__("pynvml")
        self._driver, self._lost = driver, lost

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._driver:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:  # noqa: N802
        return types.SimpleNamespace(used=handle + 1, total=10)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:  # noqa: N802
        if self._lost and handle == 1:
            raise self.NVMLError("lost")
        return types.SimpleNamespace(gpu=50)

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"GPU {handle}"


@pytest.mark.parametrize(
    ("nvml", "gpus"),
    [
        (FakeNvml(), (Gpu("GPU 0", 0.5, 1, 10), Gpu("GPU 1", 0.5, 2, 10))),
        (FakeNvml(lost=True), (Gpu("GPU 0", 0.5, 1, 10),)),
        (FakeNvml(driver=False), ()),
    ],
)
def test_gpus_are_those_that_the_driver_tells_of(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, gpus: tuple[Gpu, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert DevicesMeter().read().gpus == gpus
