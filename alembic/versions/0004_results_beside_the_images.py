"""results beside the images: whether a project wants them, and what it looks for in the images' names"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("results_file", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("projects", sa.Column("image_name_pattern", sa.Text(), nullable=True))
    # Older code neither reads nor writes these; a worker that claims from it completes its jobs without the file.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003']")


def downgrade() -> None:
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002']")
    op.drop_column("projects", "image_name_pattern")
    op.drop_column("projects", "results_file")
