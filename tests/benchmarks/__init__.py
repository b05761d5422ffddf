"""Measurements on the real stack: run by ``make bench``, never by ``make test``."""
