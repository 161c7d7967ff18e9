#!/usr/bin/env bash
# Write random secrets for compose.yaml, each in a file of its own; those that are there are left.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p secrets
umask 077
random() { python3 -c 'import secrets; print(secrets.token_hex(24), end="")'; }
for name in dagster_password mlflow_password s3_key s3_secret; do
  [[ -s secrets/$name ]] || random > "secrets/$name"
done
cat > secrets/s3_config <<JSON
{"identities": [{"name": "clipgen", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
  "credentials": [{"accessKey": "$(<secrets/s3_key)", "secretKey": "$(<secrets/s3_secret)"}]}]}
JSON
chmod 644 secrets/* # the containers' users read them; the folder is closed to others
chmod 700 secrets
