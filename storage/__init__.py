"""How the core's ports are kept: PostgreSQL for state and cache, S3 or a folder for objects, files and S3 as input."""
