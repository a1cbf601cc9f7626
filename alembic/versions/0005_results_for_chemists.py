"""results for chemists: more of each structure, corrections, groups of failures, what a project's workers cost"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

EMPTY_LIST = sa.text("'{}'")


def columns_of_results() -> list[sa.Column[Any]]:
    return [
        sa.Column("sequence", sa.Text(), nullable=True),
        sa.Column("sub_sequence", sa.Text(), nullable=True),
        sa.Column("part", sa.Text(), nullable=True),
        sa.Column("normalized_smiles", sa.Text(), nullable=True),
        sa.Column("molecular_weight", sa.Float(53), nullable=True),
        sa.Column("fragments", sa.Integer(), nullable=True),
        sa.Column("tokens", ARRAY(sa.Text()), nullable=True),
        sa.Column("token_probabilities", ARRAY(sa.REAL()), nullable=True),
    ]


def columns_of_projects() -> list[sa.Column[Any]]:
    return [
        sa.Column("image_include", ARRAY(sa.Text()), server_default=EMPTY_LIST, nullable=False),
        sa.Column("image_exclude", ARRAY(sa.Text()), server_default=EMPTY_LIST, nullable=False),
        sa.Column("keep_tokens", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("price_per_worker_hour", sa.Float(53), nullable=True),
    ]


# What is left of a message without what differs from image to image: messages of one shape are one kind of failure.
# PL/pgSQL, so that a step is taken only where there is something for it: each pattern costs microseconds.
#
# Plain words in quotes stay, for they tell kinds apart ('NoneType'), unless they name a directory or stand first. A
# directory's name may have spaces in it: a URL goes on to where the sentence does, a path to its last slash. Numbers
# that are names stay, too, as in HTTP 404. Indexes are made of it, which are not made anew when it changes.
ERROR_SHAPE = r"""
CREATE OR REPLACE FUNCTION error_shape(message text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $function$
DECLARE
    shape text := translate(left(message, 500), E'\n\r\t', '   ');
BEGIN
    IF strpos(shape, '''') > 0 THEN
        shape := regexp_replace(shape, $$(^|directory |directory's name )'[^']*'$$, '\1<text>', 'g');
        shape := regexp_replace(shape, $$(^|\W)b?'[^']*[^A-Za-z_'][^']*'(?!\w)$$, '\1<text>', 'g');
    END IF;
    IF strpos(shape, '"') > 0 THEN
        shape := regexp_replace(shape, '"[^"]*"', '<text>', 'g');
    END IF;
    IF strpos(shape, '://') > 0 THEN
        shape := regexp_replace(shape, $$\m[A-Za-z][A-Za-z0-9+.-]*://(?:(?![:;,] |$| (?:\(HTTP|and|cannot|does|has|$$
            || $$in|is|or|to|was|where)\M)[^'"])*$$, '<path>', 'g');
    END IF;
    IF strpos(shape, '/') > 0 OR strpos(shape, '\') > 0 THEN
        shape := regexp_replace(shape, $$(^|[\s(=,:])(?:[A-Za-z]:|[~.]{1,2})?[/\\][^\s'":;,()]+$$, '\1<path>', 'g');
        shape := regexp_replace(shape, $$<path>[^'":;,<]*/[^\s'":;,()]*$$, '<path>', 'g');
        shape := regexp_replace(shape, $$[^\s'":;,()]+/[^\s'":;,()]*[0-9._][^\s'":;,()]*$$, '<path>', 'g');
    END IF;
    IF strpos(shape, '.') > 0 THEN
        shape := regexp_replace(shape,
            $$[^\s'":;,()<>]+\.(?:png|jpe?g|tiff?|gif|bmp|webp|svg|pdf|json|csv|txt)\M$$, '<file>', 'gi');
    END IF;
    IF starts_with(shape, 'worker ') THEN
        shape := regexp_replace(shape, '^worker \S+', 'worker <id>');
    END IF;
    IF length(shape) > 60 THEN
        shape := regexp_replace(shape, '[^\s<>]{40,}', '<text>', 'g');
    END IF;
    IF shape ~ '[0-9]' THEN
        shape := regexp_replace(shape, '\m(?:0x[0-9A-Fa-f]+|[0-9A-Fa-f]{8,}(?:-[0-9A-Fa-f]{4,})*)\M', '<id>', 'g');
        shape := regexp_replace(shape, '(?<![0-9]|HTTP |Errno |exit -)[0-9]+(?:[.,:]? ?[0-9]+)*', '<n>', 'g');
    END IF;
    RETURN left(shape, 300);
END
$function$
"""


# The kind of a failure as a number of 48 bits: what became of it (a status, a reason) and its message's shape.
FAILURE_KEY = """
CREATE OR REPLACE FUNCTION failure_key(what text, message text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
hashtextextended(coalesce(what, '') || chr(10) || coalesce(error_shape(message), ''), 0) & 281474976710655
"""


def upgrade() -> None:
    # Each step can be done again, in a transaction of its own: an interrupted migration begins anew.
    with op.get_context().autocommit_block():
        for column in columns_of_results():
            op.add_column("results", column, if_not_exists=True)
        for column in columns_of_projects():
            op.add_column("projects", column, if_not_exists=True)
        # A colon would begin a parameter's name.
        op.execute(ERROR_SHAPE.replace(":", r"\:"))
        op.execute(FAILURE_KEY)
        op.create_table(
            "reviews",
            sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("image", sa.Text(), nullable=False),
            sa.Column("engine", sa.Text(), nullable=False),
            sa.Column("project_id", sa.BigInteger(), nullable=False),
            sa.Column("review_status", sa.Text(), nullable=False),
            sa.Column("corrected_smiles", sa.Text(), nullable=True),
            sa.Column("reviewed_smiles", sa.Text(), nullable=True),
            sa.Column("note", sa.Text(), nullable=True),
            sa.Column("reviewed_by", sa.Text(), nullable=False),
            sa.Column("reviewed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
            sa.CheckConstraint(
                "review_status IN ('accepted', 'corrected', 'rejected')", name=op.f("reviews_status_known_check")
            ),
            sa.CheckConstraint(
                "(review_status = 'corrected') = (corrected_smiles IS NOT NULL)",
                name=op.f("reviews_corrected_has_smiles_check"),
            ),
            sa.PrimaryKeyConstraint("job_id", "image", "engine", name=op.f("reviews_pkey")),
            if_not_exists=True,
        )
        op.create_index(
            "reviews_browse_idx", "reviews", ["project_id", "job_id", "image", "engine"], if_not_exists=True
        )
        op.create_table(
            "project_usage",
            sa.Column("project_id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("worker_seconds", sa.Float(53), server_default=sa.text("0"), nullable=False),
            sa.Column("busy_seconds", sa.Float(53), server_default=sa.text("0"), nullable=False),
            sa.Column("images_before", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
            sa.ForeignKeyConstraint(
                ["project_id"], ["projects.id"], name=op.f("project_usage_project_id_fkey"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("project_id", name=op.f("project_usage_pkey")),
            postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "1000"},
            if_not_exists=True,
        )
        # What is stored already took time that nobody has counted.
        op.execute(
            """
            INSERT INTO project_usage (project_id, images_before)
            SELECT s.project_id, sum(s.images_stored) FROM project_slots s GROUP BY s.project_id
            ON CONFLICT DO NOTHING
            """
        )
        op.create_table(
            "usage_clock",
            sa.Column("id", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.Column("counted_until", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
            sa.CheckConstraint("id", name=op.f("usage_clock_one_row_check")),
            sa.PrimaryKeyConstraint("id", name=op.f("usage_clock_pkey")),
            postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "1000"},
            if_not_exists=True,
        )
        op.execute("INSERT INTO usage_clock DEFAULT VALUES ON CONFLICT DO NOTHING")
        # Concurrently, for workers go on meanwhile. One that broke off is there and not valid.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS results_image_sha256_idx")
        op.create_index(
            "results_image_sha256_idx",
            "results",
            ["project_id", "image_sha256"],
            postgresql_where=sa.text("image_sha256 IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS results_failures_idx")
        op.create_index(
            "results_failures_idx",
            "results",
            ["project_id", "engine", sa.literal_column("failure_key(status, error_message)"), "job_id"],
            postgresql_where=sa.text("status <> 'recognised' OR error_message IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS jobs_failures_idx")
        op.create_index(
            "jobs_failures_idx",
            "jobs",
            ["project_id", sa.literal_column("failure_key(reason, message)"), "id"],
            postgresql_where=sa.text("state = 'failed' AND reason IS NOT NULL"),
            postgresql_concurrently=True,
        )
    # Older code knows nothing of the new columns: they are empty in the rows that it adds, and where it replaces a row
    # they stay what they were of the answer before. `job-api enrich` puts both right.
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003', '0004']")


def downgrade() -> None:
    op.execute("UPDATE schema_info SET compatible_revisions = ARRAY['0001', '0002', '0003']")
    op.drop_index("jobs_failures_idx", table_name="jobs")
    op.drop_index("results_failures_idx", table_name="results")
    op.drop_index("results_image_sha256_idx", table_name="results")
    op.execute("DROP FUNCTION failure_key(text, text)")
    op.execute("DROP FUNCTION error_shape(text)")
    op.drop_table("usage_clock")
    op.drop_table("project_usage")
    op.drop_table("reviews")
    for table, columns in (("projects", columns_of_projects()), ("results", columns_of_results())):
        for column in reversed(columns):
            op.drop_column(table, column.name)
