#!/bin/sh
# Triton as the gateway and the deployer want it: models by request only, and requests that change the server by key only.
# After a restart it loads what the repository holds, as the last rollout left it; a broken model does not keep the others down.
set -eu

key=$(cat "${SECRETS:-/run/secrets}/triton_admin_key")
[ -n "$key" ] || { echo "start.sh: the secret triton_admin_key is empty: run make secrets" >&2; exit 1; }
admin=model-repository,model-config,shared-memory,statistics,trace,logging
exec tritonserver \
    --model-repository=/models \
    --model-control-mode=explicit \
    --load-model='*' \
    --exit-on-error=false \
    --strict-readiness=false \
    --exit-timeout-secs=5 \
    --http-port=8000 --grpc-port=8001 --metrics-port=8002 \
    --http-restricted-api="$admin:admin-key=$key" \
    --grpc-restricted-protocol="$admin:admin-key=$key" \
    "$@"
