# The CPU image. `--build-arg TORCH_INDEX=` takes PyTorch's default build, which brings CUDA's
# libraries, and makes the CUDA image. How to build, run and meter: docs/deployment.md.
ARG BASE=python:3.11-slim

# The packages of others: a layer that changes with the pins alone.
FROM ${BASE} AS packages
# Where to look for PyTorch besides PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/greenllm
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && /opt/greenllm/bin/python -m pip install --no-cache-dir --compile --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --requirement requirements.txt

# greenllm itself, as a wheel; what builds it stays here.
FROM packages AS build
RUN python -m pip install --no-cache-dir --constraint constraints.txt hatchling
COPY README.md LICENSE NOTICE ./
COPY greenllm greenllm
COPY serving serving
COPY finetune finetune
COPY evals evals
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/greenllm/bin/python -m pip install --no-cache-dir --compile --no-deps --no-index /wheels/*.whl

FROM ${BASE}
RUN groupadd --gid 10001 greenllm \
 && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home greenllm \
 && mkdir --mode 700 /data \
 && chown 10001:10001 /data
COPY --from=build /opt/greenllm /opt/greenllm
# Everything that is written lies below /data or /tmp: the root file system can be read-only.
ENV PATH=/opt/greenllm/bin:$PATH \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GREENLLM_HOST=0.0.0.0 \
    GREENLLM_PORT=8000 \
    GREENLLM_DATA_DIR=/data \
    GREENLLM_CACHE_DIR=/data/cache
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# Once a minute for ever, so without urllib: a third of the CPU time.
HEALTHCHECK --interval=60s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-I", "-S", "-c", "import os, socket; s = socket.create_connection(('127.0.0.1', int(os.environ['GREENLLM_PORT'])), 3); s.sendall(b'GET /health HTTP/1.0\\r\\n\\r\\n'); raise SystemExit(b' 200 ' not in s.recv(64))"]
ENTRYPOINT ["greenllm"]
CMD ["serve"]
