# mwa-export on CPUs. docs/serve.md shows how to use the image.
#
#     docker build -t mwa-export .
#     docker build -t mwa-export:server --build-arg EXTRAS=embed,openvino,server .
#
# EXTRAS=export adds torch. PyPI's torch is the CUDA build: pass PyTorch's CPU index as the build
# argument PIP_EXTRA_INDEX_URL for the one that fits here.

FROM python:3.13-trixie AS build

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mwa_export mwa_export
COPY cli cli
COPY calib calib
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

ARG EXTRAS=embed,openvino
ARG PIP_EXTRA_INDEX_URL=
COPY constraints.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir -c constraints.txt \
        "mwa-export[${EXTRAS}] @ file://$(echo /wheels/*.whl)" \
    && /opt/venv/bin/python -m pip check

FROM python:3.13-slim-trixie

ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="mwa-export" \
      org.opencontainers.image.description="Embed images and texts with BEiT-3 and MultiWay-Adapter models" \
      org.opencontainers.image.source="https://github.com/mwa-export/mwa-export" \
      org.opencontainers.image.documentation="https://mwa-export.github.io/mwa-export" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin mwa
USER 10001:10001
WORKDIR /work

ENTRYPOINT ["mwa-export"]
CMD ["--help"]
