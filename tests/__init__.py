"""All tests. A package, so that test modules can share fakes and services by name; it never ships."""
