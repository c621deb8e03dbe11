#!/bin/bash
# A database and an owner for each of Airflow, MLflow and the ledger; what is there already stays as it is, so it can be run again.
# The image runs it once, on an empty data folder. Nobody may enter another's database. Passwords come from files and never stand in
# a command line.
set -euo pipefail

run() { psql --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres --quiet "$@"; }

for name in airflow mlflow ledger; do
    run <<SQL
\set password \`cat "${SECRETS:-/run/secrets}/${name}_db_password"\`
SELECT count(*) = 0 AS role_missing FROM pg_roles WHERE rolname = '${name}' \gset
SELECT count(*) = 0 AS database_missing FROM pg_database WHERE datname = '${name}' \gset
\if :role_missing
CREATE ROLE ${name} LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 100;
\endif
\if :database_missing
CREATE DATABASE ${name} OWNER ${name} ENCODING 'UTF8' TEMPLATE template0;
\endif
REVOKE ALL ON DATABASE ${name} FROM PUBLIC;
SQL
done
run --command "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC"
