"""The SQL tables, as they are at the newest schema revision.

The migrations make them; a test holds that both say the same. All times are Unix times in seconds
(UTC), so that SQLite and PostgreSQL store and compare them alike. Knows no row's meaning beyond its
columns.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tasks = Table(
    "tasks",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("instruction", Text, nullable=False),
    Column("demonstrations", JSON, nullable=False),  # [[input, output], …]
    Column("n_demonstrations", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

episodes = Table(
    "episodes",
    metadata,
    Column("episode_id", Text, primary_key=True),
    Column("fingerprint", Text, ForeignKey("tasks.fingerprint"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("base_model", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("decision", JSON, nullable=False),
    Column("signals", JSON(none_as_null=True)),  # null: answered by a verified hit, nothing measured
    Column("signals_version", Integer, nullable=False),
    Column("policy", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("receipt", JSON, nullable=False),
    Index(None, "created_at"),
    Index(None, "fingerprint"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("episode_id", Text, ForeignKey("episodes.episode_id"), nullable=False),
    Column("query_index", Integer),  # null: about the episode as a whole
    Column("source", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("answer", Text),
    Column("created_at", Double, nullable=False),
    Column("idempotency_key", Text, nullable=False, unique=True),
    CheckConstraint("source IN ('gold', 'held-out', 'user', 'judge')", name="source"),
    CheckConstraint("value >= 0 AND value <= 1", name="value"),
    Index(None, "episode_id"),
)

adapters = Table(
    "adapters",
    metadata,
    Column("key_hash", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("base_revision", Text, nullable=False),
    Column("template", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("last_used_at", Double, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("report", JSON, nullable=False),
    Column("demonstration_hashes", JSON, nullable=False),
)

# The distinct `demonstration_hashes` of each adapter, for `Adapters.find_subset`. Each row says how many
# there are, so that the index alone tells which adapters have no others than those that are looked for. An
# adapter of no demonstrations has one row, with the empty text.
adapter_demonstrations = Table(
    "adapter_demonstrations",
    metadata,
    Column("key_hash", Text, ForeignKey("adapters.key_hash", ondelete="CASCADE"), primary_key=True),
    Column("demonstration_hash", Text, primary_key=True),
    Column("n_demonstrations", Integer, nullable=False),
    Index(None, "demonstration_hash", "n_demonstrations", "key_hash"),
    sqlite_with_rowid=False,  # the primary key is the table: two copies of each row rather than three
)

# Where the tasks of adapters lie, for `Embeddings.nearest`. Vectors of different spaces are never compared. Rows are only
# ever added (or go with their adapter), and `id` grows, so that readers keep what they have and fetch what is new.
adapter_embeddings = Table(
    "adapter_embeddings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "key_hash", Text, ForeignKey("adapters.key_hash", ondelete="CASCADE"), nullable=False, unique=True
    ),
    Column("space", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian, of length 1
    Column("seen_inputs", JSON, nullable=False),  # hashes of all inputs that the adapter has learned from
    Index(None, "space", "id"),
    sqlite_autoincrement=True,  # else the id of a deleted row would come again
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),  # by the database's clock
)

policy_versions = Table(
    "policy_versions",
    metadata,
    Column("version", Text, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("active", Boolean, nullable=False),
)
