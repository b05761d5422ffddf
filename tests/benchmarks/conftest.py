"""Benchmarks share the stack that they drive."""

from tests.benchmarks.stack import stack

__all__ = ["stack"]
