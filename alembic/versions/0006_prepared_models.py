"""prepared models: which one a row was made with is a part of its provenance"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MADE_WITH = ["worker_id", "engine", "engine_version", "weights", "weights_sha256", "prepared", "snapshot"]

# Provenances that only the column told apart are one again; the oldest of them stays.
ARE_THERE_ANY = """
SELECT EXISTS (
    SELECT FROM provenances
    GROUP BY worker_id, engine, engine_version, weights, weights_sha256, snapshot HAVING count(*) > 1)
"""
MERGE = """
WITH same AS (
    SELECT id, min(id) OVER (PARTITION BY worker_id, engine, engine_version, weights, weights_sha256, snapshot) AS first
    FROM provenances),
moved AS (
    UPDATE results r SET provenance_id = s.first FROM same s WHERE r.provenance_id = s.id AND s.id <> s.first)
DELETE FROM provenances v USING same s WHERE v.id = s.id AND s.id <> s.first
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.add_column("provenances", sa.Column("prepared", sa.Text(), nullable=True), if_not_exists=True)
        # Concurrently, for workers go on meanwhile. One that broke off is there and not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS provenances_made_with_key")
        op.create_index(
            "provenances_made_with_key",
            "provenances",
            MADE_WITH,
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_concurrently=True,
        )
    # Together with the word that it is done: until then the index belongs to no constraint, and can be made anew.
    op.drop_constraint("provenances_all_key", "provenances")
    op.execute(
        "ALTER TABLE provenances ADD CONSTRAINT provenances_made_with_key UNIQUE USING INDEX provenances_made_with_key"
    )
    # Older code leaves the column empty, and names no constraint: its insert meets what has no prepared model, and it
    # finds a provenance that is there. Of two that the column alone tells apart it may find either. A worker has two if
    # it went from one to the other, or if services of both codes store what it posts, of which the older drop this.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003', '0004', '0005']")


def downgrade() -> None:
    # Services of this revision are to be stopped: what they store afterwards has a column that is gone.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003', '0004']")
    # Before anything is looked at, so that what is being stored is merged as well, or waits.
    op.execute("LOCK TABLE provenances IN ACCESS EXCLUSIVE MODE")
    if op.get_bind().scalar(sa.text(ARE_THERE_ANY)):
        op.execute(MERGE)
    op.drop_constraint("provenances_made_with_key", "provenances")
    op.drop_column("provenances", "prepared")
    op.create_unique_constraint(
        "provenances_all_key",
        "provenances",
        [name for name in MADE_WITH if name != "prepared"],
        postgresql_nulls_not_distinct=True,
    )
