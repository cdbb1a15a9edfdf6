# CPU image. The CUDA variant takes another base image and torch build by argument.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY greenllm greenllm
COPY serving serving
COPY finetune finetune
COPY evals evals
RUN python -m venv /opt/greenllm \
 && /opt/greenllm/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM ${BASE}
COPY --from=build /opt/greenllm /opt/greenllm
RUN useradd --create-home --uid 10001 greenllm && mkdir /data && chown greenllm /data
USER greenllm
ENV PATH=/opt/greenllm/bin:$PATH GREENLLM_HOST=0.0.0.0 GREENLLM_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://localhost:8000/health', timeout=3)"
ENTRYPOINT ["greenllm"]
CMD ["serve"]
