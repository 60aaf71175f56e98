"""Commands of the command line, by what they are about; :mod:`autoad.cli` puts them together."""
