#!/bin/sh
# MLflow behind a login, for the host names in MLFLOW_SERVER_ALLOWED_HOSTS only, artefacts through the server (no client sees the store).
# The database's address is a secret: it goes through the environment, not through a command line.
set -eu

secrets=${SECRETS:-/run/secrets}
MLFLOW_BACKEND_STORE_URI=$(cat "$secrets/mlflow_db_url")
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$secrets/mlflow_session_key")
MLFLOW_AUTH_CONFIG_PATH=$secrets/mlflow_auth
export MLFLOW_BACKEND_STORE_URI MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH
exec mlflow server --app-name basic-auth --serve-artifacts --artifacts-destination="${ARTIFACTS:-/srv/mlflow/artifacts}" \
    --host="${HOST:-0.0.0.0}" --port="${PORT:-5000}" --workers=2 "$@"
