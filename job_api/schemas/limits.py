"""How much one request may hold, and the names that both sides must spell alike."""

MAX_JOBS_PER_ADD = 10_000
MAX_IDS_PER_FILTER = 10_000
MAX_EXAMPLES = 10
MAX_RESULTS_PER_POST = 1_000
MAX_REVIEWS_PER_PUT = 1_000
MAX_LOG_LINES_PER_POST = 1_000
MAX_LEASES_PER_CLAIM = 100
MAX_LEASES_PER_HEARTBEAT = 1_000
MAX_WAIT_SECONDS = 50
MAX_ENGINE_OPTIONS_BYTES = 16_384
MAX_ENGINE_OPTIONS_DEPTH = 10
MAX_NAME_PATTERN_CHARS = 500
MAX_GLOB_PATTERNS = 50
MIN_FLOAT4 = 2.0**-126
MAX_PAGE_SIZE = 1_000

SESSION_TOKEN_NAME = "session"  # noqa: S105 - what a token that stands for a login is called
NONE_CHOSEN = "no-chosen-images"
"""Why a job fails in whose directory there are images, and none that the project's patterns choose."""
PENDING_JOBS_HEADER = "Pending-Jobs"
PROJECT_PAUSED_HEADER = "Project-Paused"
NEXT_SINCE_HEADER = "Next-Since"
ROWS_OMITTED_HEADER = "Rows-Omitted"
RESERVED_PROJECT_NAMES = frozenset({"claim", "logs", "projects", "token", "tokens", "users", "workers"})
MAX_INT8 = 2**63 - 1
