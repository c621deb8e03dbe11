#!/bin/sh
# Whether every database is there and lets its owner in. Over TCP: while they are being made the server listens on its socket only.
set -eu

for name in airflow mlflow ledger; do
    PGPASSWORD=$(cat "${SECRETS:-/run/secrets}/${name}_db_password") \
        psql --no-psqlrc --host=127.0.0.1 --port="${PGPORT:-5432}" --username="$name" --dbname="$name" --quiet --tuples-only --command="SELECT 1" >/dev/null || {
        echo "healthy.sh: the database $name is not there, or refuses its owner: docs/compose.md, 'A first start that broke off'" >&2
        exit 1
    }
done
