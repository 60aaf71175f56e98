"""What this machine's processors, memory and GPUs are doing."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import psutil

__all__ = ["Devices", "DevicesMeter", "Gpu"]


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU's use: fractions of its time and bytes of its memory."""

    name: str
    busy: float
    memory_used: int
    memory_total: int


@dataclasses.dataclass(frozen=True)
class Devices:
    """A machine's use.

    Attributes:
        cores: fraction of its time that each logical core was busy since the last look.
        memory_used: bytes that are in use and not to be had.
        memory_total: bytes.
        gpus: those that NVIDIA's driver knows.
    """

    cores: tuple[float, ...]
    memory_used: int
    memory_total: int
    gpus: tuple[Gpu, ...] = ()


class DevicesMeter:
    """Looks at the devices; GPUs are seen where ``nvidia-ml-py`` is installed and finds any."""

    def __init__(self) -> None:
        psutil.cpu_percent(percpu=True)  # the first answer is about no time at all
        self._nvml: Any = None
        with suppress(Exception):  # not installed, no driver, no GPU: there is nothing to show then
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml

    def read(self) -> Devices:
        """Their use since the last call."""
        memory = psutil.virtual_memory()
        return Devices(
            cores=tuple(percent / 100 for percent in psutil.cpu_percent(percpu=True)),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            gpus=self._gpus(),
        )

    def _gpus(self) -> tuple[Gpu, ...]:
        if self._nvml is None:
            return ()
        gpus = []
        with suppress(self._nvml.NVMLError):  # a GPU that is reset, or hides its use from containers
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                gpus.append(Gpu(str(self._nvml.nvmlDeviceGetName(handle)), busy, int(memory.used), int(memory.total)))
        return tuple(gpus)
