# metavoice on a CPU, or on an NVIDIA GPU (--build-arg TORCH=cu128).
# One stage makes the environment, the other only holds it.
FROM python:3.12-slim AS build
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/metavoice
ENV PATH=/opt/metavoice/bin:$PATH
RUN pip install torch torchaudio --index-url https://download.pytorch.org/whl/${TORCH}
COPY . /src
RUN pip install "/src[serve,ui,finetune]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 metavoice && mkdir -p /cache /voices /runs && chown metavoice:metavoice /cache /voices /runs
COPY --from=build /opt/metavoice /opt/metavoice
ENV PATH=/opt/metavoice/bin:$PATH PYTHONUNBUFFERED=1 \
    METAVOICE_CACHE=/cache/metavoice HF_HOME=/cache/huggingface HF_HUB_DISABLE_TELEMETRY=1 \
    METAVOICE_VOICES=/voices METAVOICE_HOST=0.0.0.0 METAVOICE_PORT=8000
USER metavoice
WORKDIR /home/metavoice
VOLUME ["/cache", "/voices", "/runs"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
ENTRYPOINT ["metavoice"]
CMD ["serve"]
