#!/bin/sh
# SimpleAuthManager wants to lock its password file for writing: it gets a copy of the secret in memory.
set -eu

umask 077
cp "${SECRETS:-/run/secrets}/airflow_passwords" "$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"
exec airflow api-server
