#!/usr/bin/env bash
# An image of the code in this clone, and the folder that starts it on other machines; see ./build_snapshot.sh --help.
set -euo pipefail
home=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
python=$home/.venv/bin/python
if [[ ! -x $python ]]; then
    echo "build_snapshot.sh: nothing is installed in $home yet; run: make -C '$home' install" >&2
    exit 1
fi
# -P: what lies in the current folder is no part of this.
exec "$python" -P -m uworker.snapshot "$@"
