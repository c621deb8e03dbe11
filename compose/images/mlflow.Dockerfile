# The tracking server and registry, with its login and its driver for PostgreSQL.
FROM python:3.11.13-slim-bookworm AS environment
# Another index than pip's own, where packages come from one.
ARG PIP_INDEX_URL=
COPY compose/images/mlflow.lock /tmp/mlflow.lock
RUN python -m venv /opt/perennial/venv \
    && /opt/perennial/venv/bin/python -m pip install --no-cache-dir --no-deps --requirement /tmp/mlflow.lock

FROM python:3.11.13-slim-bookworm
LABEL org.opencontainers.image.title="perennial-mlflow" \
      org.opencontainers.image.description="MLflow behind a login, artefacts through the server" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10002 mlflow \
    && useradd --uid 10002 --gid 10002 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlflow \
    && install -d -o mlflow -g mlflow -m 0755 /srv/mlflow /srv/mlflow/artifacts
COPY --from=environment /opt/perennial/venv /opt/perennial/venv
ENV PATH=/opt/perennial/venv/bin:/usr/local/bin:/usr/bin:/bin
WORKDIR /srv/mlflow
USER 10002:10002
EXPOSE 5000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "--version"]
