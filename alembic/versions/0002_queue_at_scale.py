"""queue at scale: the place of a lease in its claim, projects deleted bit by bit, autovacuum settings"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CLEAN_BIG = (
    "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, "
    "autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02"
)
CLEAN_TINY = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000"
SETTINGS = {
    "jobs": CLEAN_BIG,
    "attempts": CLEAN_BIG,
    "results": CLEAN_BIG,
    "project_slots": CLEAN_TINY,
    "workers": CLEAN_TINY,
}


def upgrade() -> None:
    # Each step can be done again: an interrupted migration begins anew.
    op.add_column("jobs", sa.Column("claim_place", sa.BigInteger(), nullable=True), if_not_exists=True)
    # A deleted project gets another name and loses its counters at once: older code finds it by neither.
    op.add_column("projects", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True), if_not_exists=True)
    # It was looked up for each claim; attempts are only made together with a lease of their locked job.
    op.execute("ALTER TABLE attempts DROP CONSTRAINT IF EXISTS attempts_job_id_fkey")
    for table, settings in SETTINGS.items():
        op.execute(f"ALTER TABLE {table} SET ({settings})")
    with op.get_context().autocommit_block():
        # Concurrently, for workers go on meanwhile.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_claim_key_idx")
        op.create_index(
            "jobs_claim_key_idx",
            "jobs",
            ["worker_id", "claim_key", sa.literal_column("coalesce(claim_place, id)")],
            unique=True,
            postgresql_where=sa.text("state = 'claimed'"),
            postgresql_concurrently=True,
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_worker_idx")
    # What 0001 writes leaves claim_place empty, and what it reads by jobs_worker_idx the new index finds as well.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001']")


def downgrade() -> None:
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY[]::text[]")
    op.create_index("jobs_worker_idx", "jobs", ["worker_id"], postgresql_where=sa.text("state = 'claimed'"))
    op.drop_index("jobs_claim_key_idx", table_name="jobs")
    for table, settings in SETTINGS.items():
        names = ", ".join(setting.split(" = ")[0] for setting in settings.split(", "))
        op.execute(f"ALTER TABLE {table} RESET ({names})")
    op.create_foreign_key("attempts_job_id_fkey", "attempts", "jobs", ["job_id"], ["id"])
    op.drop_column("projects", "deleted_at")
    op.drop_column("jobs", "claim_place")
