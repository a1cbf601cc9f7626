"""The spool's tables and statements. A change of the tables is a new `VERSION` in `spool.py`."""

SCHEMA = """
CREATE TABLE owner (worker_id TEXT NOT NULL, root TEXT NOT NULL);
CREATE TABLE leases (
    job_id INTEGER NOT NULL, lease_seq INTEGER NOT NULL, project TEXT NOT NULL, directory TEXT NOT NULL,
    engine TEXT NOT NULL, image_count INTEGER, failure TEXT, PRIMARY KEY (job_id, lease_seq));
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job_id INTEGER NOT NULL, lease_seq INTEGER NOT NULL, run TEXT NOT NULL,
    row TEXT NOT NULL);
CREATE INDEX rows_of_lease ON rows (job_id, lease_seq, id);
"""
# How a lease ends is only known later than some of its rows, and what it fails with goes before its completion.
PUT_LEASE = """
INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    image_count = coalesce(excluded.image_count, image_count), failure = coalesce(excluded.failure, failure)
"""
PUT_ROW = "INSERT INTO rows (job_id, lease_seq, run, row) VALUES (?, ?, ?, ?)"
OLDEST_ROWS = "SELECT id, run, row FROM rows WHERE job_id = ? AND lease_seq = ? AND id > ? ORDER BY id LIMIT ?"
DROP_ROWS = "DELETE FROM rows WHERE job_id = ? AND lease_seq = ? AND id <= ?"
DROP_LEASE = "DELETE FROM leases WHERE job_id = ? AND lease_seq = ?"
LEASES = """
SELECT job_id, lease_seq, project, directory, engine, image_count, failure,
       (SELECT count(*) FROM rows r WHERE r.job_id = l.job_id AND r.lease_seq = l.lease_seq)
FROM leases l ORDER BY rowid
"""
COUNT_ROWS = "SELECT count(*) FROM rows WHERE job_id = ? AND lease_seq = ? AND id > ?"
NEWEST_ROW = "SELECT max(id) FROM rows WHERE job_id = ? AND lease_seq = ?"
