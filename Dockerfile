# Three images from one file:
#   docker build --target proxy .   the gateway alone
#   docker build --target cpu .     with the engine on a CPU
#   docker build --target cuda .    with the engine on an NVIDIA GPU; run it with --gpus all
# The CUDA runtime comes with PyTorch's and cuda-python's own wheels, so all three stand on the same small base.
# For a CPU build of PyTorch from an index of its own: --build-arg PIP_EXTRA_INDEX_URL=…
# Each target stands behind what it needs and before what it does not, for builders that do not skip stages.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS runtime
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY deploy/penstock.yaml /etc/penstock/penstock.yaml
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
ENTRYPOINT ["penstock"]
CMD ["serve", "--config", "/etc/penstock/penstock.yaml"]

FROM ${BASE} AS environment
ENV PATH=/opt/penstock/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/penstock
WORKDIR /src
# What is depended on, in layers that a change of our code leaves alone: the metadata with empty rooms.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway/__init__.py gateway/__init__.py
RUN mkdir engine cache policies cuda && touch engine/__init__.py cache/__init__.py policies/__init__.py \
 && pip install -q -c constraints.txt . && pip uninstall -q -y penstock

FROM environment AS built-proxy
COPY . .
RUN pip install -q --no-deps .

FROM runtime AS proxy
COPY --from=built-proxy /opt/penstock /opt/penstock

FROM environment AS environment-engine
ARG PIP_EXTRA_INDEX_URL
RUN pip install -q "$(grep '^torch==' constraints.txt)" \
 && pip install -q -c constraints.txt ".[engine]" && pip uninstall -q -y penstock

FROM environment-engine AS built-cpu
COPY . .
RUN pip install -q --no-deps .

FROM runtime AS cpu
COPY --from=built-cpu /opt/penstock /opt/penstock

FROM environment-engine AS environment-cuda
RUN pip install -q -c constraints.txt ".[cuda]" && pip uninstall -q -y penstock

FROM environment-cuda AS built-cuda
COPY . .
# With every kernel compiled, which takes no GPU: a start compiles nothing.
RUN pip install -q --no-deps . && PENSTOCK_KERNEL_CACHE=/opt/penstock/kernels penstock kernels build

FROM runtime AS cuda
ENV PENSTOCK_KERNEL_CACHE=/opt/penstock/kernels
COPY --from=built-cuda /opt/penstock /opt/penstock
