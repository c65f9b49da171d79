"""First schema: tasks, episodes, outcomes, adapters, leases, policy versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("instruction", sa.Text, nullable=False),
        sa.Column("demonstrations", sa.JSON, nullable=False),
        sa.Column("n_demonstrations", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_tasks"),
    )
    op.create_table(
        "episodes",
        sa.Column("episode_id", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("arm", sa.Text, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("decision", sa.JSON, nullable=False),
        sa.Column("signals", sa.JSON),
        sa.Column("signals_version", sa.Integer, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("receipt", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("episode_id", name="pk_episodes"),
        sa.ForeignKeyConstraint(["fingerprint"], ["tasks.fingerprint"], name="fk_episodes_fingerprint"),
    )
    op.create_index("ix_episodes_created_at", "episodes", ["created_at"])
    op.create_index("ix_episodes_fingerprint", "episodes", ["fingerprint"])
    op.create_table(
        "outcomes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("episode_id", sa.Text, nullable=False),
        sa.Column("query_index", sa.Integer),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outcomes"),
        sa.CheckConstraint(
            "source IN ('gold', 'held-out', 'user', 'judge')", name=op.f("ck_outcomes_source")
        ),
        sa.CheckConstraint("value >= 0 AND value <= 1", name=op.f("ck_outcomes_value")),
        sa.ForeignKeyConstraint(["episode_id"], ["episodes.episode_id"], name="fk_outcomes_episode_id"),
        sa.UniqueConstraint("idempotency_key", name="uq_outcomes_idempotency_key"),
    )
    op.create_index("ix_outcomes_episode_id", "outcomes", ["episode_id"])
    op.create_table(
        "adapters",
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("base_revision", sa.Text, nullable=False),
        sa.Column("template", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("last_used_at", sa.Double, nullable=False),
        sa.Column("accepted", sa.Boolean, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("demonstration_hashes", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("key_hash", name="pk_adapters"),
    )
    op.create_index("ix_adapters_base", "adapters", ["base_revision", "template"])
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "policy_versions",
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_policy_versions"),
    )
