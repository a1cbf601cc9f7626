"""Content straight into the database, faster than any service takes it; never inside a measured time.

What it writes keeps to the CHECK constraints of `job_api/models.py` and keeps the project's counters true.
"""

import uuid
from collections.abc import Callable

from benchmarks import rows
from benchmarks.stage import Stage

BATCH = 500_000
# So many different texts of each kind; a prime, so that they do not go in step with the images of a job.
TEXTS = 89

# Foreign keys are right by construction; to check each costs more than its row.
FAST = """
SET synchronous_commit = off;
DO $$ BEGIN SET session_replication_role = replica; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
"""

Say = Callable[[str], None]


def seed_queued(stage: Stage, project: str, jobs: int) -> None:
    """Queue jobs."""
    number = _project_id(stage, project)
    stage.sql(f"""
        {FAST}
        BEGIN;
        INSERT INTO jobs (project_id, directory)
        SELECT {number}, {_directory("queued")} FROM generate_series(1, {jobs}) AS n;
        {_count(number, queued=jobs)}
        COMMIT;
    """)


def seed_finished(stage: Stage, project: str, jobs: int, results: int, say: Say) -> None:
    """Add finished jobs, the first of them completed with 50 result rows each, the others failed without any.

    One job is claimed and completed over HTTP first; its row's provenance is that of all rows. So the project holds
    one job and one row more than asked for, and the rows are a multiple of 50.
    """
    seed_queued(stage, project, 1)
    stage.play("churn", project, size=1)
    number = _project_id(stage, project)
    completed = -(-results // rows.IMAGES_PER_JOB)
    before = int(stage.sql("SELECT max(id) FROM jobs"))
    for kind, wanted in (("completed", completed), ("failed", max(jobs - completed, 0))):
        for first in range(1, wanted + 1, BATCH):
            last = min(first + BATCH - 1, wanted)
            stage.sql(FAST + _finished(number, kind, first, last))
            say(f"  {last:,} of {wanted:,} {kind} jobs")
    span = BATCH // rows.IMAGES_PER_JOB
    for offset in range(0, completed, span):
        stage.sql(FAST + _results(number, before, offset, span))
        say(f"  {min(offset + span, completed) * rows.IMAGES_PER_JOB:,} rows")


def settle(stage: Stage) -> None:
    """Let the database come to rest: statistics are fresh, and nothing is left to write."""
    stage.sql("VACUUM ANALYZE;\nCHECKPOINT;")


def _project_id(stage: Stage, project: str) -> int:
    return int(stage.sql(f"SELECT id FROM projects WHERE name = '{project}'"))


def _texts(texts: list[str], number: str) -> str:
    listed = ",".join(f"$t${text}$t$" for text in texts)
    return f"(ARRAY[{listed}])[1 + ({number}) % {len(texts)}]"


def _directory(kind: str) -> str:
    names = [rows.directory(40 * number).split("/")[0] for number in range(TEXTS)]
    # The same project may be seeded again.
    return f"{_texts(names, 'n')} || '/{kind} {uuid.uuid4().hex[:8]} ' || n"


def _count(project: int, **counts: int) -> str:
    added = ", ".join(f"{column} = {column} + {count}" for column, count in counts.items())
    return f"UPDATE project_slots SET {added} WHERE project_id = {project} AND slot = 0;"


def _finished(project: int, state: str, first: int, last: int) -> str:
    jobs = last - first + 1
    images = jobs * rows.IMAGES_PER_JOB if state == "completed" else 0
    image_count = rows.IMAGES_PER_JOB if state == "completed" else "NULL"
    reason = "NULL" if state == "completed" else "'no-images'"
    counters = _count(project, **{state: jobs}, images_stored=images, images_recognised=images, images_listed=images)
    return f"""
        BEGIN;
        INSERT INTO jobs (project_id, directory, state, lease_seq, image_count, reason, finished_at)
        SELECT {project}, {_directory(state)}, '{state}', 1, {image_count}, {reason}, now()
        FROM generate_series({first}, {last}) AS n;
        {counters}
        COMMIT;
    """


def _results(project: int, after_job: int, offset: int, jobs: int) -> str:
    number = f"j.id * {rows.IMAGES_PER_JOB} + i"
    smiles = _texts([rows.smiles(text) for text in range(TEXTS)], number)
    return f"""
        INSERT INTO results (
            job_id, image, engine, project_id, provenance_id, lease_seq, run, status, truncated, is_valid, width,
            height, frames, n_tokens, duration_ms, confidence, confidence_mean, confidence_min, image_sha256, smiles,
            canonical_smiles, inchikey, formula, flags, normalized_smiles, molecular_weight, fragments, sequence, part)
        SELECT j.id, 'output/sequence_' || lpad(i::text, 2, '0') || '_left.png', 'decimer', {project}, v.id, 1, 1,
               'recognised', false, true, 200 + (37 * i) % 700, 150 + (23 * i) % 500, 1, 35 + i % 25, 300 + 17 * i,
               0.7 + (j.id * 7919 + i) % 299989 / 1000000.0, 0.7 + (j.id * 7907 + i) % 299977 / 1000000.0,
               0.2 + (j.id * 7901 + i) % 399989 / 1000000.0, sha256(int8send({number})), {smiles}, {smiles},
               {_texts([rows.inchikey(text) for text in range(TEXTS)], number)},
               {_texts([rows.formula(text) for text in range(TEXTS)], number)},
               CASE WHEN i % 20 = 7 THEN ARRAY['has_rgroup'] ELSE '{{}}' END, {smiles},
               250 + (j.id * 7883 + i) % 29983 / 100.0, 1, lpad(i::text, 2, '0'), 'left'
        FROM (SELECT id FROM jobs WHERE project_id = {project} AND state = 'completed' AND id > {after_job}
              ORDER BY id OFFSET {offset} LIMIT {jobs}) AS j
        CROSS JOIN generate_series(1, {rows.IMAGES_PER_JOB}) AS i
        CROSS JOIN (SELECT provenance_id AS id FROM results WHERE project_id = {project} LIMIT 1) AS v
        ORDER BY j.id, i;
    """
