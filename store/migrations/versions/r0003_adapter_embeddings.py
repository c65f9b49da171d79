"""Where the tasks of adapters lie, for finding the adapters of like tasks; empty for adapters that are there already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "adapter_embeddings",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("space", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("seen_inputs", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_embeddings"),
        sa.ForeignKeyConstraint(
            ["key_hash"], ["adapters.key_hash"], name="fk_adapter_embeddings_key_hash", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("key_hash", name="uq_adapter_embeddings_key_hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_adapter_embeddings_space", "adapter_embeddings", ["space", "id"])


def downgrade() -> None:
    op.drop_table("adapter_embeddings")
