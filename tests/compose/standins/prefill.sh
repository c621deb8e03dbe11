#!/bin/bash
# Puts an environment that `make setup` made into the Airflow stand-in: the image's pip then finds every package of requirements.lock
# installed, torch's too, whose index may be out of reach. Usage: prefill.sh ENVIRONMENT IMAGE
set -euo pipefail

environment=$(realpath "$1")
image=$2
docker run --name standin-prefill --user 0 --entrypoint bash --volume "$environment":/from:ro "$image" -euc '
    mkdir -p /opt/perennial
    cd /opt/perennial
    python -m venv venv
    cp -a --no-preserve=ownership /from/lib/python3.11/site-packages/. venv/lib/python3.11/site-packages/
    for script in /from/bin/*; do
        name=$(basename "$script")
        [ -e "venv/bin/$name" ] || cp -a --no-preserve=ownership "$script" "venv/bin/$name"
    done
    grep --files-with-matches --binary-files=without-match "^#!.*/python[0-9.]*$" venv/bin/* | xargs sed -i "1s|^#!.*|#!/opt/perennial/venv/bin/python|"
    [ ! -d /from/share ] || cp -a --no-preserve=ownership /from/share venv/
    chown -R 50000:0 /opt/perennial
    venv/bin/python -m pip --version'
docker commit --change 'USER 50000' --change 'ENTRYPOINT ["/usr/bin/dumb-init", "--", "/entrypoint"]' --change 'CMD []' standin-prefill "$image"
docker rm standin-prefill
