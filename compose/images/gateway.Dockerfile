# The gateway without anything that trains: no torch, no MLflow, no Airflow.
FROM python:3.11.13-slim-bookworm AS environment
# Another index than pip's own, where packages come from one.
ARG PIP_INDEX_URL=
COPY compose/images/gateway.lock /tmp/gateway.lock
RUN python -m venv /opt/perennial/venv \
    && /opt/perennial/venv/bin/python -m pip install --no-cache-dir --no-deps --requirement /tmp/gateway.lock

FROM python:3.11.13-slim-bookworm
LABEL org.opencontainers.image.title="perennial-gateway" \
      org.opencontainers.image.description="Perennial's HTTP gateway before Triton" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gateway \
    && install -d -o gateway -g gateway -m 0755 /srv/perennial /srv/perennial/prediction_log /srv/perennial/gateway
COPY --from=environment /opt/perennial/venv /opt/perennial/venv
WORKDIR /opt/perennial/src
COPY perennial perennial
COPY pipelines pipelines
COPY serving serving
ENV PATH=/opt/perennial/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/perennial/src \
    PERENNIAL_HOME=/srv/perennial \
    PROMETHEUS_MULTIPROC_DIR=/tmp/metrics
# A checkout's files may be closed to others (umask 077), and modes are copied.
RUN chmod -R a+rX . && python -m compileall -q pipelines serving
USER 10001:10001
EXPOSE 8090 8091
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8090/readyz', timeout=4)"]
CMD ["uvicorn", "serving.gateway.app:app", "--host=0.0.0.0", "--port=8090", "--workers=2", "--no-access-log", "--loop=serving.gateway.turns:Loop", \
     "--http=serving.gateway.connections:Connection", "--ws=none", "--timeout-graceful-shutdown=5"]
