#!/bin/bash
# Runs once, on an empty data folder: a database and an owner for each of Airflow, MLflow and the ledger.
# Nobody may enter another's database. Passwords come from files and never stand in a command line.
set -euo pipefail

for name in airflow mlflow ledger; do
    psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --quiet <<SQL
\set password \`cat "${SECRETS:-/run/secrets}/${name}_db_password"\`
CREATE ROLE ${name} LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 100;
CREATE DATABASE ${name} OWNER ${name} ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE ${name} FROM PUBLIC;
SQL
done
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --quiet --command "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC"
