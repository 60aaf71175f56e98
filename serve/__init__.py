"""Promoted models over HTTP: the Ray Serve application, its data plane and its control plane."""
