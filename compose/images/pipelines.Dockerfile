# Airflow and the loop in one environment: exactly requirements.lock, which is also what the tests run on.
# The official image gives the system, its user and its init; what it has installed beside that is not used.
FROM apache/airflow:3.3.2-python3.11 AS environment
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
USER root
RUN install -d -o airflow -g root /opt/perennial
USER airflow
# PyPI's torch would bring gigabytes of CUDA. For a GPU: an index of CUDA builds, and TORCH_DEPS empty, so that the libraries come along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_DEPS=--no-deps
# Another index than pip's own, for all the other packages.
ARG PIP_INDEX_URL=
WORKDIR /opt/perennial
# A checkout that was made under umask 077 lets nobody but its owner read.
COPY --chmod=0644 requirements.lock ./
RUN python -m venv venv \
    && torch="$(grep '^torch==' requirements.lock)" \
    && venv/bin/python -m pip install --no-cache-dir ${TORCH_DEPS} --index-url "${TORCH_INDEX}" "${torch}" \
    && venv/bin/python -m pip install --no-cache-dir --no-deps --requirement requirements.lock

FROM apache/airflow:3.3.2-python3.11
LABEL org.opencontainers.image.title="perennial-pipelines" \
      org.opencontainers.image.description="Perennial's DAGs, steps and exporters in Airflow" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER root
# LightGBM's wheel is linked against the system's OpenMP runtime, whichever version the image's Debian has.
# hadolint ignore=DL3008
RUN test -e /usr/lib/x86_64-linux-gnu/libgomp.so.1 \
    || { apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*; }
# The folders that volumes are mounted on: a new volume takes its owner from here.
RUN install -d -o airflow -g root -m 0755 /srv/perennial /srv/perennial/prediction_log /srv/perennial/model_repository \
        /srv/perennial/gateway /var/log/perennial
COPY --from=environment /opt/perennial/venv /opt/perennial/venv
WORKDIR /opt/perennial/src
# Owned by root: what runs cannot change its own code. For development the same folders are mounted over it.
COPY pyproject.toml data.dvc ./
COPY dvc_remote dvc_remote
COPY perennial perennial
COPY pipelines pipelines
COPY serving serving
COPY embedded embedded
COPY plugins plugins
COPY dags dags
COPY --chmod=0755 compose/airflow /opt/perennial/bin
ENV PATH=/opt/perennial/venv/bin:/opt/perennial/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/perennial/src:/opt/perennial/src/embedded/airflow_config \
    AIRFLOW_HOME=/opt/airflow \
    PERENNIAL_HOME=/srv/perennial
# A checkout's files may be closed to others (umask 077), and modes are copied.
RUN chmod -R a+rX . && python -m compileall -q perennial pipelines serving embedded plugins dags
USER 50000:0
HEALTHCHECK --interval=30s --timeout=30s --start-period=90s --retries=4 \
    CMD ["bash", "-c", "exec airflow jobs check --hostname \"$HOSTNAME\""]
ENTRYPOINT ["/usr/bin/dumb-init", "--"]
CMD ["airflow", "version"]
