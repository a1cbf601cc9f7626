"""What each column of a result is in SQL: of a row `r`, with what is joined to it. Reads nothing itself.

Joined are the project `p`, the job `j`, the provenance `v` and the review `w`; what only some readers ask for is a
subquery. A column that is left out costs nothing where only what the others need is joined.
"""

from collections.abc import Collection, Iterable, Sequence

# `OFFSET 0` makes the planner look up each row's job, provenance and review by id, remembering them (memoize), as it
# should also where it knows too little of the tables: hashing all jobs for each page would cost more than the page.
_JOINS = {
    "p": "CROSS JOIN LATERAL (SELECT p.name FROM projects p WHERE p.id = r.project_id OFFSET 0) p",
    "j": "CROSS JOIN LATERAL (SELECT j.directory FROM jobs j WHERE j.id = r.job_id OFFSET 0) j",
    "v": "CROSS JOIN LATERAL (SELECT v.* FROM provenances v WHERE v.id = r.provenance_id OFFSET 0) v",
    "w": """LEFT JOIN LATERAL (SELECT w.* FROM reviews w
    WHERE w.job_id = r.job_id AND w.image = r.image AND w.engine = r.engine OFFSET 0) w ON true""",
}

# The same bytes under another name in the same project; unknown where the image was not read.
_DUPLICATE = """CASE WHEN r.image_sha256 IS NOT NULL THEN EXISTS (
    SELECT FROM results d WHERE d.project_id = r.project_id AND d.image_sha256 = r.image_sha256
    AND (d.job_id, d.image) <> (r.job_id, r.image)) END"""
# What other engines say of the same image.
AGREEMENT = """CASE WHEN r.inchikey IS NOT NULL THEN (
    SELECT CASE WHEN bool_or(o.inchikey = r.inchikey) THEN 'same'
                WHEN bool_or(left(o.inchikey, 14) = left(r.inchikey, 14)) THEN 'same_skeleton'
                WHEN count(*) > 0 THEN 'different' END
    FROM results o WHERE o.job_id = r.job_id AND o.image = r.image AND o.engine <> r.engine AND o.inchikey IS NOT NULL
) END"""

REVIEW = ("review_status", "corrected_smiles", "review_note", "reviewed_by", "reviewed_at", "review_outdated")
_PROVENANCE = ("engine_version", "weights", "weights_sha256", "prepared", "snapshot", "worker_id")
_JOINED_FOR = {
    "project": "p",
    "directory": "j",
    **dict.fromkeys(_PROVENANCE, "v"),
    **dict.fromkeys(REVIEW, "w"),
}

_EXPRESSIONS = {
    "project": "p.name",
    "directory": "j.directory",
    "image_sha256": "encode(r.image_sha256, 'hex')",
    "inchikey_first_block": "left(r.inchikey, 14)",
    "duplicate_image": _DUPLICATE,
    "agreement": AGREEMENT,
    "review_note": "w.note",
    # Reviewed was another answer than the one that stands there now.
    "review_outdated": "CASE WHEN w.review_status IS NOT NULL THEN w.reviewed_smiles IS DISTINCT FROM r.smiles END",
    **{name: f"w.{name}" for name in ("review_status", "corrected_smiles", "reviewed_by", "reviewed_at")},
    **{name: f"v.{name}" for name in _PROVENANCE},
}
_BOOLEANS = ("truncated", "is_valid", "duplicate_image", "review_outdated")
_TIMES = ("processed_at", "reviewed_at")
_LISTS = {
    "flags": "CASE WHEN r.flags <> '{}' THEN array_to_string(r.flags, ';') END",
    "tokens": "array_to_json(r.tokens)::text",
    "token_probabilities": "array_to_string(r.token_probabilities, ';')",
}


def joined(names: Iterable[str]) -> str:
    """The rows `r` with what is joined to them for these columns: what comes after FROM."""
    needed = {_JOINED_FOR[name] for name in names if name in _JOINED_FOR}
    return "\n".join(("results r", *(join for alias, join in _JOINS.items() if alias in needed)))


JOINED = joined(_JOINED_FOR)
"""For all columns."""


def select_list(names: Sequence[str], empty: Collection[str] = ()) -> str:
    """The columns of these names, which are those of `schemas.Result`, for a SELECT of what is `joined` for them.

    Args:
        names: which, in this order.
        empty: columns that are known to hold nothing; they are null, and need no join.
    """
    return ", ".join(f"{_expression(name, empty)} AS {name}" for name in names)


def select_list_of_csv(names: Sequence[str], empty: Collection[str] = ()) -> str:
    """The same as texts of a CSV: what PostgreSQL writes would be `t`, `{a,b}` and a time with a space in it.

    The session's time zone is UTC. Of one column nothing at all would be an empty line, which readers skip: it is an
    empty text, which PostgreSQL writes as `""`.
    """
    if len(names) == 1:
        return f"coalesce(({_in_csv(names[0], empty)})::text, '') AS {names[0]}"
    return ", ".join(f"{_in_csv(name, empty)} AS {name}" for name in names)


def _expression(name: str, empty: Collection[str]) -> str:
    return "NULL" if name in empty else _EXPRESSIONS.get(name, f"r.{name}")


def _in_csv(name: str, empty: Collection[str]) -> str:
    expression = _expression(name, empty)
    if name in empty:
        return expression
    if name in _BOOLEANS:
        return f"CASE ({expression}) WHEN true THEN 'true' WHEN false THEN 'false' END"
    if name in _TIMES:
        return f"replace({expression}::text, ' ', 'T') || ':00'"
    return _LISTS.get(name, expression)
