from __future__ import annotations

import os
import subprocess
from pathlib import Path

from autoad.serve._haproxy import configure_haproxy


def test_the_script_changes_what_listens_everywhere_and_becomes_haproxy(tmp_path: Path) -> None:
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    environment: dict[str, str] = {}
    configure_haproxy(tmp_path, environment)
    exporter, statistics = environment["RAY_SERVE_HAPROXY_METRICS_PORT"], environment["RAY_SERVE_HAPROXY_STATS_PORT"]
    # The lines as Ray's template has them: if a newer Ray writes others, this must be looked at again.
    assert "    bind :{{ config.metrics_port }}\n" in HAPROXY_CONFIG_TEMPLATE
    assert "  bind *:{{ config.stats_port }}\n" in HAPROXY_CONFIG_TEMPLATE
    assert "backend default_backend\n    http-request return status 404 content-type" in HAPROXY_CONFIG_TEMPLATE
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n"
        "defaults\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n"
        f"frontend prometheus\n    bind :{exporter}\n"
        "frontend http_frontend\n    bind 127.0.0.1:65000\n    default_backend default_backend\n"
        "backend default_backend\n"
        "    http-request return status 404 content-type text/plain lf-string \"Path \\'%[path]\\' not found.\"\n"
        'backend http-autoad\n    http-request return status 404 content-type text/plain string "stays"\n'
        f"listen stats\n  bind *:{statistics}\n  stats enable\n"
    )
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run([script, "-c", "-f", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # HAProxy itself finds the configuration right
    text = config.read_text()
    assert f"bind 127.0.0.1:{exporter}\n" in text
    assert f"bind 127.0.0.1:{statistics}\n" in text
    assert text.count("status 503") == 1
    assert text.count("status 404") == 1
    assert os.access(script, os.X_OK)
    assert Path(script).stat().st_mode & 0o077 == 0
