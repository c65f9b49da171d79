"""Schema revisions, append-only: a released one is never edited, a change is a new file in versions/.

Each revision is plain Alembic and never imports `store.tables`, which moves on without it.
"""

HEAD = "0003"
"""The newest revision, named here so that a database at head is opened without importing Alembic."""
