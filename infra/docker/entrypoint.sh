#!/usr/bin/env bash
# Secrets come as files: NAME_FILE=/run/secrets/x becomes NAME with that file's content. The instance config is
# the profile that DAGSTER_PROFILE names. A run's or a step's container joins the Ray cluster that RAY_ADDRESS
# (HOST:PORT) names, as a node without CPUs: from there it starts workers elsewhere. A code location does not,
# so that it lives when Ray is away. In Compose, runs are processes of the code location's container: those that
# a lost one left under way are marked as failed once the next one can be reached, which frees their slots.
set -euo pipefail
while IFS='=' read -r name path; do
  if [[ ! -r "$path" ]]; then
    echo "$name names $path, which cannot be read: mount the secret" >&2
    exit 2
  fi
  export "${name%_FILE}=$(<"$path")"
done < <(env | grep -E '^(DAGSTER_PG_PASSWORD|AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|MLFLOW_PASSWORD|CLIPGEN_WEBHOOK|RAY_AUTH_TOKEN)_FILE=' || true)
if [[ -n "${DAGSTER_PROFILE:-}" ]]; then
  cp "${CLIPGEN_PROFILES:-/opt/clipgen/dagster}/$DAGSTER_PROFILE.yaml" "$DAGSTER_HOME/dagster.yaml"
fi
if [[ -n "${MLFLOW_PASSWORD:-}" ]]; then # of MLflow's own database
  export MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://mlflow:$MLFLOW_PASSWORD@${DAGSTER_PG_HOST:-postgres}/mlflow"
fi
if [[ "${DAGSTER_PROFILE:-}" == compose && "${1:-} ${2:-} ${3:-}" == "dagster code-server start" ]]; then
  lost=$(python -m pipelines.killed --list)
  if [[ -n "$lost" ]]; then # the daemon tries once to start a failed run again, and reloads the location each minute
    (until dagster api grpc-health-check -p 4000 >/dev/null 2>&1; do sleep 5; done
     sleep 75
     # shellcheck disable=SC2086 # each id is an argument
     exec python -m pipelines.killed $lost) &
  fi
fi
if [[ -n "${RAY_ADDRESS:-}" && "${1:-} ${2:-} ${3:-}" =~ ^dagster\ api\ execute_(run|step) ]]; then
  address=$RAY_ADDRESS
  env -u RAY_ADDRESS ray start --address="$address" --num-cpus=0 --num-gpus=0 --disable-usage-stats >&2
fi
exec "$@"
