"""Packaged search spaces: one YAML file an algorithm, described in README.md."""
