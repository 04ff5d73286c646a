# Clearhead's server on the CPU: no PyTorch, no GPU library. Build with: docker build -t clearhead .
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE MANIFEST.in ./
COPY src ./src
COPY docs/tour ./docs/tour
COPY recipes ./recipes
RUN python -m venv /opt/clearhead && /opt/clearhead/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 clearhead
COPY --from=build /opt/clearhead /opt/clearhead
ENV PATH=/opt/clearhead/bin:$PATH PYTHONUNBUFFERED=1
USER clearhead
WORKDIR /home/clearhead
# Compile the engine once, so that a container answers at once.
RUN clearhead generate "One" -n 1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["clearhead", "serve", "--host", "0.0.0.0"]
