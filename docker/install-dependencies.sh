#!/bin/sh
# Runs while an image is built, in a stage that is thrown away: puts what uv.lock pins into /opt/venv, for the Python of
# Debian.  sh install-dependencies.sh UV_VERSION "EXTRA…" [GROUP]
#
# Expects pyproject.toml and uv.lock in the current folder. A CA bundle that is not empty, in ./ca-bundle.crt, is
# believed besides Debian's own: where a proxy inspects TLS, PyPI is not reached without it.
set -eu
uv_version=$1 extras=$2 group=${3:-}
if [ -s ca-bundle.crt ]; then
    believed=$(mktemp)
    # pip and uv take a file instead of Debian's, so it holds both; the last line of the first may have no end.
    { cat /etc/ssl/certs/ca-certificates.crt && echo && cat ca-bundle.crt; } >"$believed"
    export SSL_CERT_FILE="$believed" PIP_CERT="$believed"
fi
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "uv==$uv_version"
# Of the arguments nothing is needed any more.
set --
for extra in $extras; do set -- "$@" --extra "$extra"; done
export UV_PROJECT_ENVIRONMENT=/opt/venv UV_PYTHON=/usr/bin/python3 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
/tmp/uv/bin/uv sync --frozen --no-cache --no-default-groups --no-install-project --compile-bytecode \
    "$@" ${group:+--group "$group"}
