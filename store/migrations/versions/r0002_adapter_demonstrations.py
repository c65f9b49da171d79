"""An index of adapters by demonstration, filled from the hashes that each adapter's row lists.

It replaces the index of adapters by base model, which SQLite would rather use, reading them all.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

PAGE = 1000
"""Adapters read at a time."""


def upgrade() -> None:
    made = op.create_table(
        "adapter_demonstrations",
        sa.Column("key_hash", sa.Text, nullable=False),
        sa.Column("demonstration_hash", sa.Text, nullable=False),
        sa.Column("n_demonstrations", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key_hash", "demonstration_hash", name="pk_adapter_demonstrations"),
        sa.ForeignKeyConstraint(
            ["key_hash"],
            ["adapters.key_hash"],
            name="fk_adapter_demonstrations_key_hash",
            ondelete="CASCADE",
        ),
        sqlite_with_rowid=False,
    )
    adapters = sa.table(
        "adapters", sa.column("key_hash", sa.Text), sa.column("demonstration_hashes", sa.JSON)
    )
    query = sa.select(adapters).order_by(adapters.c.key_hash).limit(PAGE)
    connection, last = op.get_bind(), ""
    while page := connection.execute(query.where(adapters.c.key_hash > last)).all():
        own = {row.key_hash: sorted(set(row.demonstration_hashes)) for row in page}
        rows = [
            {"key_hash": key, "demonstration_hash": demonstration, "n_demonstrations": len(hashes)}
            for key, hashes in own.items()
            for demonstration in hashes or [""]
        ]
        connection.execute(sa.insert(made), rows)
        last = page[-1].key_hash
    op.create_index(
        "ix_adapter_demonstrations_demonstration_hash",
        "adapter_demonstrations",
        ["demonstration_hash", "n_demonstrations", "key_hash"],
    )
    op.drop_index("ix_adapters_base", "adapters")


def downgrade() -> None:
    op.create_index("ix_adapters_base", "adapters", ["base_revision", "template"])
    op.drop_index("ix_adapter_demonstrations_demonstration_hash", "adapter_demonstrations")
    op.drop_table("adapter_demonstrations")
