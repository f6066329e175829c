#   docker build --tag tutti:cpu .
#   docker build --tag tutti:cuda --build-arg VARIANT=cuda --build-arg TORCH_INDEX= .
#
# VARIANT      cpu, or cuda: torch's CUDA build with its libraries, and vLLM. The host brings the NVIDIA driver.
# TORCH_INDEX  where torch comes from. PyPI's build for x86-64 wants CUDA, so the CPU image takes PyTorch's own
#              index; empty takes pip's default, which is right for cuda.
#
# Docker 25 or later has all that is used here. PYTHON_IMAGE is the one image that is fetched.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# The packages change with the locks alone: edits of the source leave this layer, the largest, as it is, here and in
# the image that is pushed and pulled.
FROM ${PYTHON_IMAGE} AS packages
ARG VARIANT=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src
COPY requirements/serve.lock requirements/vllm-cuda.lock requirements/
COPY deploy/image/install.sh deploy/image/cc deploy/image/
RUN --mount=type=cache,target=/var/cache/pip deploy/image/install.sh packages /opt/tutti "${VARIANT}"
RUN deploy/image/install.sh launcher /opt/tutti "${VARIANT}"

FROM packages AS build
COPY deploy/demo.yaml /etc/tutti/demo.yaml
COPY deploy/demo/test.jsonl /etc/tutti/demo/test.jsonl
COPY deploy/demo/models /etc/tutti/demo/models
# A checkout that its owner alone may read would make an image that its user may not read.
RUN chmod -R a+rX /etc/tutti
COPY pyproject.toml README.md LICENSE ./
COPY alignment alignment
COPY fusion fusion
COPY server server
RUN --mount=type=cache,target=/var/cache/pip deploy/image/install.sh wheel /opt/tutti

FROM ${PYTHON_IMAGE} AS image
# tini hands SIGTERM on from the first moment (Python as process 1 would ignore it while it imports) and reaps.
# The base leaves Python's own library uncompiled: every start and every health check would compile what it imports.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 tutti \
    && useradd --uid 10001 --gid 10001 --home-dir /var/cache/tutti --shell /usr/sbin/nologin tutti \
    && install --directory --owner=10001 --group=10001 /var/cache/tutti /var/cache/huggingface \
    && python -m compileall -q -x '/(site-packages|tests?|idlelib)/' /usr/local/lib/python3.11
COPY --from=packages /opt/tutti /opt/tutti
COPY --from=build /etc/tutti /etc/tutti
RUN --mount=type=bind,from=build,source=/src,target=/src /src/deploy/image/install.sh tutti /opt/tutti
# CC is there for CUDA only: what Triton compiles is compiled already, see deploy/image/cc.
# Everything that is written at run time goes to these two folders and /tmp; the rest may be read-only.
ENV PATH=/opt/tutti/bin:${PATH} \
    HOME=/var/cache/tutti \
    HF_HOME=/var/cache/huggingface \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CC=/opt/tutti/libexec/cc \
    TUTTI_SERVER__HOST=0.0.0.0 \
    TUTTI_SERVER__CACHE_DIR=/var/cache/tutti
USER 10001:10001
WORKDIR /etc/tutti
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start of large models downloads and loads for minutes; a failed start ends the container instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --start-interval=2s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["tini", "--", "tutti"]
CMD ["serve", "/etc/tutti/demo.yaml"]
# Last: an argument makes every step after it run anew when it changes.
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Tutti" \
      org.opencontainers.image.description="An inference server that decodes with several different LLMs as one" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}-${VARIANT}" \
      org.opencontainers.image.revision="${REVISION}"
