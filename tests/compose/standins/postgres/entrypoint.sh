#!/bin/bash
# What the official image documents of its first start: initdb with POSTGRES_INITDB_ARGS and the password of POSTGRES_PASSWORD_FILE,
# then the scripts of /docker-entrypoint-initdb.d against a server that listens on its socket alone. Runs as the image's user.
set -euo pipefail

if [ "${1:-}" != postgres ]; then exec "$@"; fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA"
    # Several options stand in the one variable, as documented.
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" ${POSTGRES_INITDB_ARGS:-}
    printf '\nhost all all all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export PGPASSWORD
    pg_ctl --wait --options "-c listen_addresses=''" start
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
            *.sh) if [ -x "$script" ]; then "$script"; else . "$script"; fi ;;
            *.sql) psql --username="$POSTGRES_USER" --set=ON_ERROR_STOP=1 --file="$script" ;;
        esac
    done
    pg_ctl --wait --mode=fast stop
    unset PGPASSWORD
fi
exec "$@"
