#!/bin/sh
# Runs once in a container, before the database is made: gives it a random password, in files that only the service and
# the container's root can read. A second run changes nothing.
set -eu
umask 077
cd /secrets
if [ ! -s pgpass ]; then
    password=$(head --bytes=24 /dev/urandom | base64 | tr '+/' '-_')
    printf '%s\n' "$password" > database-password
    # As libpq and asyncpg read it: host, port, database, user, password. Written last: it says that all is there.
    printf '*:*:*:decimer:%s\n' "$password" > pgpass.half
    mv pgpass.half pgpass
    echo "made a password for the database"
fi
