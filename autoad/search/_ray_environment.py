"""What Ray reads from the environment when it is imported; so this is imported before it.

Ray's processes listen on loopback alone when the node's address is 127.0.0.1, which it is (on Linux, too) when clusters
are off; any other address, even 127.0.0.2, makes most of them listen on every interface. And they authenticate by a
token: for a Ray of our own a fresh one that is never written to disk, unless the user has one (`cluster.py`).

Tune starts one worker after another unless told otherwise; as many as there are places may start at once.
"""

from __future__ import annotations

import os

for _name, _value in {
    "RAY_AUTH_MODE": "token",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}.items():
    os.environ.setdefault(_name, _value)
