"""quarantine: failures in a row of each worker, why and since when a worker is in its state, refunds of a job"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Each table in a transaction of its own, since requests take these tables in several orders; an interrupted
    # migration begins anew, and finds what is there already.
    with op.get_context().autocommit_block():
        op.add_column(
            "jobs",
            sa.Column("refunds", sa.Integer(), server_default=sa.text("0"), nullable=False),
            if_not_exists=True,
        )
        op.add_column(
            "workers", sa.Column("state_since", sa.DateTime(timezone=True), nullable=True), if_not_exists=True
        )
        op.add_column("workers", sa.Column("reason", sa.Text(), nullable=True), if_not_exists=True)
        op.create_table(
            "worker_failures",
            sa.Column("worker_id", sa.Text(), nullable=False),
            sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("lease_seq", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("counts", sa.Boolean(), nullable=False),
            sa.Column("failed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
            sa.ForeignKeyConstraint(
                ["worker_id"], ["workers.id"], name=op.f("worker_failures_worker_id_fkey"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("worker_id", "job_id", "lease_seq", name=op.f("worker_failures_pkey")),
            postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "1000"},
            if_not_exists=True,
        )
    # Older code writes none of these, and what it does to jobs and workers leaves them true enough: a worker that it
    # serves is not quarantined.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002']")


def downgrade() -> None:
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001']")
    op.drop_table("worker_failures")
    op.drop_column("workers", "reason")
    op.drop_column("workers", "state_since")
    op.drop_column("jobs", "refunds")
