# YATT in an image, from the lock. Not built yet: there was no container runtime where it was written.
#
#     docker build -t yatt:cpu .
#     docker build -t yatt:cuda --build-arg TORCH=cuda .
#
# Everything comes from the lock but the dashboard of Ray, of the lock's version, which KubeRay asks for its health.
FROM python:3.11-slim-bookworm

ARG TORCH=cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ make procps wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /yatt
COPY pyproject.toml README.md LICENSE Makefile requirements.lock requirements-cuda.lock ./
COPY yatt yatt
RUN make install TORCH=${TORCH} PYTHON=python3.11 \
    && .venv/bin/python -m pip install --no-cache-dir "ray[default]==$(sed -n 's/^ray==//p' requirements.lock)"
ENV PATH=/yatt/.venv/bin:$PATH

# Signals reach yatt itself, which saves: see docs/reliability.md.
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["yatt", "doctor"]
