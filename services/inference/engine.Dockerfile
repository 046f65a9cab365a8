# The engine image: the inference service with vLLM, which it runs as children, one for each deployed model.
# For the CPU, or with --target cuda on vLLM's official image. From the root of the repository:
#   docker build -f services/inference/engine.Dockerfile -t textmill/engine:0.1.0 .
#   docker build -f services/inference/engine.Dockerfile --target cuda -t textmill/engine:0.1.0-cuda .
# torch for the CPU is on an index of its own, which TORCH_INDEX names; or put its wheel into deploy/images/wheels.
ARG BASE=python:3.11-slim
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${BASE} AS wheels
WORKDIR /src
COPY requirements/images/build.txt requirements/images/
COPY deploy/images/wheels wheels
COPY core core
COPY services/inference services/inference
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /build \
    && /build/bin/pip install --require-hashes --no-deps --find-links wheels -r requirements/images/build.txt \
    && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist ./core ./services/inference \
    && install -d -o 10001 -g 10001 /scratch

FROM ${BASE} AS build-cpu
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
WORKDIR /src
COPY requirements/images/engine-cpu.txt requirements/images/
COPY deploy/images/wheels wheels
# Of Arrow, only Parquet and JSON on local files are used: what it has for Flight, S3 and compilers goes, and so do
# libraries' own tests and torch's headers.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /build && python3 -m venv --without-pip /opt/textmill \
    && /build/bin/pip --python /opt/textmill/bin/python install --require-hashes --no-deps --find-links wheels \
       -r requirements/images/engine-cpu.txt \
    && /build/bin/pip --python /opt/textmill/bin/python install --find-links wheels \
       ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}" \
    && find /opt/textmill/lib/python3*/site-packages \( -path '*/pyarrow/tests/*' -o -path '*/pyarrow/include/*' \
       -o -path '*/pyarrow/*flight*.so*' -o -path '*/pyarrow/*_s3*.so*' -o -path '*/pyarrow/*.p[xy][dix]' \
       -o -name 'libarrow_python*.so' -o -name 'libarrow_python*.so.*.*.*' -o -path '*/Crypto/SelfTest/*' \
       -o -path '*/numpy/[a-z]*/tests/*' -o -path '*/numpy/_core/tests/[!_]*' -o -path '*/numpy/distutils/*' \
       -o -path '*/numpy/f2py/*' -o -path '*/sympy/*/tests/*' -o -path '*/torch/test/*' -o -path '*/torch/include/*' \
       -o -path '*/torch/bin/test_*' -o -path '*/torch/bin/protoc*' \) -delete
COPY --from=wheels /dist /dist
RUN /build/bin/pip --python /opt/textmill/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl \
    && /opt/textmill/bin/python -c 'import textmill_inference.main'

FROM ${VLLM_IMAGE} AS cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="textmill engine" \
      org.opencontainers.image.description="vLLM under textmill's supervision, for NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="textmill"
COPY requirements/images/engine-cuda.txt /tmp/requirements.txt
COPY --from=wheels /dist /dist
# Beside vLLM, into its own Python, and only what it hasn't got: what it pins stays as it is.
RUN uv pip install --system --no-cache --no-deps --require-hashes -r /tmp/requirements.txt \
    && uv pip install --system --no-cache --no-deps --no-index /dist/*.whl \
    && rm -r /dist /tmp/requirements.txt
COPY --from=wheels --chown=10001:10001 /scratch /scratch
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/cache \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TEXTMILL_INFERENCE_HOST=0.0.0.0 \
    TEXTMILL_INFERENCE_PORT=8100
USER 10001:10001
EXPOSE 8100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TEXTMILL_INFERENCE_PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["textmill-inference"]

# The last stage is what a build without --target makes.
FROM ${BASE} AS cpu
# vLLM's kernels for the CPU ask for the system's libnuma; a base that has it needs no Debian mirror here. Mirrors keep
# one version of a package for each release of Debian, so naming it would end builds and settle nothing.
# hadolint ignore=DL3008
RUN python3 -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' || { apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*; }
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="textmill engine" \
      org.opencontainers.image.description="vLLM under textmill's supervision, on the CPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="textmill"
COPY --from=build-cpu /opt/textmill /opt/textmill
COPY --from=wheels --chown=10001:10001 /scratch /scratch
# vLLM compiles small functions of its sampler, those of log probabilities for one; there is no compiler to do that with.
ENV PATH=/opt/textmill/bin:$PATH \
    TORCHDYNAMO_DISABLE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/cache \
    HF_HUB_OFFLINE=1 \
    TEXTMILL_INFERENCE_HOST=0.0.0.0 \
    TEXTMILL_INFERENCE_PORT=8100
USER 10001:10001
EXPOSE 8100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TEXTMILL_INFERENCE_PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["textmill-inference"]
