"""AutoML for visual anomaly detection."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("autoad")
