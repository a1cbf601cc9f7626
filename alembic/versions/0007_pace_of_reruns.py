"""pace of reruns: how many rows took the place of older ones"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "project_slots", sa.Column("images_replaced", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    # Older code leaves the column as it is, and drops what it folds: a rerun that goes on meanwhile has a lower pace,
    # and fewer images in its price. Samples count these rows from now on.
    op.execute("DELETE FROM project_samples")
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003', '0004', '0005', '0006']")


def downgrade() -> None:
    # Services of this revision are to be stopped: they count in a column that is gone.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003', '0004', '0005']")
    op.drop_column("project_slots", "images_replaced")
    op.execute("DELETE FROM project_samples")
