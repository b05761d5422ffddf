"""In-memory implementations of the core's ports; they pass the same contract suites as the real ones."""
