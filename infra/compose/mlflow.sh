#!/usr/bin/env bash
# Runs once, when the database is created: adds MLflow's user and database to Dagster's.
set -euo pipefail
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -v password="$(<"$MLFLOW_PASSWORD_FILE")" <<'SQL'
CREATE USER mlflow PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
SQL
