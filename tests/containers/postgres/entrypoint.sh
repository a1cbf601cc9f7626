#!/usr/bin/env bash
# What the image `postgres` does with the variables that docker/service uses: root reads the password's file and steps
# down; an empty folder becomes a database, which listens on its socket alone until it is made. Logins over TCP from
# other containers need the password, those over the socket do not.
set -euo pipefail
if [[ $(id --user) == 0 ]]; then
    POSTGRES_PASSWORD=$(<"$POSTGRES_PASSWORD_FILE")
    export POSTGRES_PASSWORD
    mkdir --parents "$PGDATA"
    chown --recursive postgres: "$PGDATA"
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups bash "${BASH_SOURCE[0]}" "$@"
fi
if [[ ! -s $PGDATA/PG_VERSION ]]; then
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    pg_ctl --wait start --options="-c listen_addresses=''"
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait stop --mode=fast
fi
unset POSTGRES_PASSWORD
exec "$@"
