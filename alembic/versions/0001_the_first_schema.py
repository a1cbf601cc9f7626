"""the first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("queue_pos_seq", data_type=sa.BigInteger())))
    op.execute(sa.schema.CreateSequence(sa.Sequence("result_seq", data_type=sa.BigInteger())))
    # From here on last_value always is a value that was given out; the export's high-water mark relies on it.
    op.execute("SELECT setval('result_seq', 1)")
    op.create_table(
        "log_lines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=True),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("lease_seq", sa.BigInteger(), nullable=True),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("logger", sa.Text(), nullable=True),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("log_lines_pkey")),
    )
    op.create_index("log_lines_project_idx", "log_lines", ["project_id", "id"], unique=False)
    op.create_index(op.f("log_lines_worker_id_id_idx"), "log_lines", ["worker_id", "id"], unique=False)
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), server_default=sa.text("'decimer'"), nullable=False),
        sa.Column(
            "engine_options", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_failures", sa.Integer(), server_default=sa.text("3"), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("projects_pkey")),
        sa.UniqueConstraint("name", name=op.f("projects_name_key")),
    )
    op.create_table(
        "provenances",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.Text(), nullable=True),
        sa.Column("weights", sa.Text(), nullable=True),
        sa.Column("weights_sha256", sa.Text(), nullable=True),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("provenances_pkey")),
        sa.UniqueConstraint(
            "worker_id",
            "engine",
            "engine_version",
            "weights",
            "weights_sha256",
            "snapshot",
            name="provenances_all_key",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "results",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("nextval('result_seq')"), nullable=False),
        sa.Column("provenance_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_seq", sa.BigInteger(), nullable=False),
        sa.Column("processed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("stale", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=True),
        sa.Column("is_valid", sa.Boolean(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("frames", sa.Integer(), nullable=True),
        sa.Column("n_tokens", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("confidence", sa.Float(precision=53), nullable=True),
        sa.Column("confidence_mean", sa.Float(precision=53), nullable=True),
        sa.Column("confidence_min", sa.Float(precision=53), nullable=True),
        sa.Column("image_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("smiles", sa.Text(), nullable=True),
        sa.Column("canonical_smiles", sa.Text(), nullable=True),
        sa.Column("inchikey", sa.Text(), nullable=True),
        sa.Column("formula", sa.Text(), nullable=True),
        sa.Column("flags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "image", "engine", name=op.f("results_pkey")),
    )
    op.create_index("results_export_idx", "results", ["project_id", "seq"], unique=False)
    op.create_table(
        "schema_info",
        sa.Column("id", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("compatible_revisions", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.CheckConstraint("id", name=op.f("schema_info_one_row_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("schema_info_pkey")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("name", name=op.f("users_name_key")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=True),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'run'"), nullable=False),
        sa.Column("load", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("queue_pos", sa.BigInteger(), server_default=sa.text("nextval('queue_pos_seq')"), nullable=False),
        sa.Column("run", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("present_from_run", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("lease_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("claim_key", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("releases", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("image_count", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("added_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'claimed') = (worker_id IS NOT NULL) AND (state = 'claimed') = (claim_key IS NOT NULL)"
            " AND (state = 'claimed') = (lease_expires_at IS NOT NULL)",
            name=op.f("jobs_claimed_has_holder_check"),
        ),
        sa.CheckConstraint("(state = 'waiting') = (due_at IS NOT NULL)", name=op.f("jobs_waiting_is_due_check")),
        sa.CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name=op.f("jobs_finished_has_time_check"),
        ),
        sa.CheckConstraint(
            "state <> 'completed' OR coalesce(image_count, 0) > 0", name=op.f("jobs_completed_has_images_check")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'waiting', 'claimed', 'completed', 'failed', 'cancelled')",
            name=op.f("jobs_state_known_check"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("jobs_project_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        sa.UniqueConstraint("project_id", "directory", name=op.f("jobs_project_id_directory_key")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index("jobs_browse_idx", "jobs", ["project_id", "state", "id"], unique=False)
    op.create_index(
        "jobs_claim_idx",
        "jobs",
        ["project_id", sa.literal_column("priority DESC"), "queue_pos"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("jobs_waiting_idx", "jobs", ["due_at"], unique=False, postgresql_where=sa.text("state = 'waiting'"))
    op.create_index(
        "jobs_worker_idx", "jobs", ["worker_id"], unique=False, postgresql_where=sa.text("state = 'claimed'")
    )
    op.create_table(
        "project_samples",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("sampled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("images_stored", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("project_samples_project_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "sampled_at", name=op.f("project_samples_pkey")),
    )
    op.create_table(
        "project_slots",
        sa.Column("project_id", sa.BigInteger(), nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("queued", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("waiting", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("completed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("images_stored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("images_recognised", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("images_listed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("project_slots_project_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", "slot", name=op.f("project_slots_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=True),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("tokens_user_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("tokens_pkey")),
        sa.UniqueConstraint("token_hash", name=op.f("tokens_token_hash_key")),
    )
    op.create_index(op.f("tokens_user_id_idx"), "tokens", ["user_id"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("lease_seq", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("claim_key", sa.Text(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("charged", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("new_results", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name=op.f("attempts_ended_has_time_check")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("attempts_job_id_fkey")),
        sa.PrimaryKeyConstraint("job_id", "lease_seq", name=op.f("attempts_pkey")),
        postgresql_with={"fillfactor": "80"},
    )
    op.execute("INSERT INTO schema_info DEFAULT VALUES")


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_index(op.f("tokens_user_id_idx"), table_name="tokens")
    op.drop_table("tokens")
    op.drop_table("project_slots")
    op.drop_table("project_samples")
    op.drop_index("jobs_worker_idx", table_name="jobs", postgresql_where=sa.text("state = 'claimed'"))
    op.drop_index("jobs_waiting_idx", table_name="jobs", postgresql_where=sa.text("state = 'waiting'"))
    op.drop_index("jobs_claim_idx", table_name="jobs", postgresql_where=sa.text("state = 'queued'"))
    op.drop_index("jobs_browse_idx", table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("workers")
    op.drop_table("users")
    op.drop_table("schema_info")
    op.drop_index("results_export_idx", table_name="results")
    op.drop_table("results")
    op.drop_table("provenances")
    op.drop_table("projects")
    op.drop_index(op.f("log_lines_worker_id_id_idx"), table_name="log_lines")
    op.drop_index("log_lines_project_idx", table_name="log_lines")
    op.drop_table("log_lines")
    op.execute("DROP SEQUENCE queue_pos_seq, result_seq")
