# docs/container.md says how to build and run this image.

# The wheels bring CUDA 13 themselves.  NVIDIA's base adds what lies around it: the check that the driver is new enough, and
# libraries for a driver that is a little too old.  Without a GPU, python:3.12-slim is smaller and does as well.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS python
RUN if ! python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi

# In a stage of its own, so that the 7 GB of dependencies are installed again only when they change, not with every edit of pyproject.toml.
FROM python AS requirements
COPY pyproject.toml /
# Extras of pyproject.toml, for example "servers": what an audit alone needs none of.
ARG EXTRAS=
RUN python3 -c 'import os, tomllib; p = tomllib.load(open("/pyproject.toml", "rb")); extras = p["project"]["optional-dependencies"]; \
        more = [line for name in os.environ["EXTRAS"].split() for line in extras[name]]; \
        print(*p["build-system"]["requires"], *p["project"]["dependencies"], *more, sep="\n")' \
    > /requirements.txt

FROM python
COPY --from=requirements /requirements.txt /opt/onnx-audit/
COPY constraints.txt /opt/onnx-audit/
ENV PATH=/opt/onnx-audit/bin:$PATH
# The secret is the pip.conf of whoever builds behind a mirror; without one it is not there.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/onnx-audit \
    && pip install --no-cache-dir --disable-pip-version-check --progress-bar off \
        --constraint /opt/onnx-audit/constraints.txt --requirement /opt/onnx-audit/requirements.txt

# Numeric, as Kubernetes wants it to believe runAsNonRoot.  /audit is open to all because --user may name any other.
RUN useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin onnx-audit \
    && install --directory --mode=1777 /audit

COPY . /src
RUN pip install --no-index --no-deps --no-build-isolation --no-cache-dir --disable-pip-version-check /src && rm -rf /src

# Every library keeps its files under HOME: with it at /tmp, a read-only root and a user without an entry in /etc/passwd both work.
# USER is for those that ask for a name and would look it up there.
ENV HOME=/tmp \
    USER=onnx-audit \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    ORT_DISABLE_TELEMETRY=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

ARG REVISION=unknown
LABEL org.opencontainers.image.title="onnx-audit" \
      org.opencontainers.image.description="Find, repair, prove and gate backdoors in third-party ONNX image classifiers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
WORKDIR /audit
VOLUME /audit
ENTRYPOINT ["onnx-audit"]
CMD ["--help"]
