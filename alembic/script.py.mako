"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# Older revisions whose code still works on this schema (expand first, contract in a later release).
COMPATIBLE_REVISIONS: list[str] = []


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
    op.get_bind().execute(
        sa.text("UPDATE schema_info SET compatible_revisions = :revisions"), {"revisions": COMPATIBLE_REVISIONS}
    )


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
