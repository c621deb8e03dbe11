#!/bin/sh
# Triton as the gateway and the deployer want it: gRPC under mutual TLS and nothing else (metrics apart), models by request only.
# No secret stands in the command line, which every user of the host can read: the options name files.
# After a restart it loads what the repository holds, as the last rollout left it; a broken model does not keep the others down.
set -eu

secrets=${SECRETS:-/run/secrets}
for name in triton_authority triton_server_certificate triton_server_key; do
    [ -s "$secrets/$name" ] || { echo "start.sh: the secret $name is missing or empty: run make secrets" >&2; exit 1; }
done
# Of the image's backends the one that our models need: a request for another one, which may run code that it brings along, is refused.
backends=${BACKENDS:-/opt/tritonserver/backends}
chosen=${CHOSEN:-/run/perennial}/backends
mkdir -p "$chosen"
ln -sfn "$backends/onnxruntime" "$chosen/onnxruntime"
# Nobody needs shared memory, trace and logging calls: they want a header that no client can send, as its name has a space.
exec tritonserver \
    --model-repository=/models \
    --backend-directory="$chosen" \
    --model-control-mode=explicit \
    --load-model='*' \
    --exit-on-error=false \
    --strict-readiness=false \
    --exit-timeout-secs=5 \
    --allow-http=false \
    --grpc-port=8001 --metrics-port=8002 \
    --grpc-use-ssl=true \
    --grpc-use-ssl-mutual=true \
    --grpc-server-cert="$secrets/triton_server_certificate" \
    --grpc-server-key="$secrets/triton_server_key" \
    --grpc-root-cert="$secrets/triton_authority" \
    --grpc-restricted-protocol='shared-memory,trace,logging:no one=ever' \
    "$@"
