"""The history of the tables, as Alembic steps: the schema is their sum. It ships with the wheel."""
