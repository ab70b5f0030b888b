# Two images of one program. `listener`: listen, deliver, sweep, db, doctor; no torch in it. `worker`: the networks too.
#
#     docker build --target listener --tag cxr-dicom-node/listener .
#     docker build --target worker   --tag cxr-dicom-node/worker .
#
# Any Debian 12 serves as the base. pip finds its packages on PyPI, or where its own settings in the base say.
ARG BASE=debian:bookworm-20260803-slim

FROM ${BASE} AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

# pip stays here. The packages come before the source: an edit of ours leaves their layers as they were.
FROM base AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-pip python3-venv \
    && python3 -m venv --without-pip /opt/cxr-node
ENV PIP_PYTHON=/opt/cxr-node/bin/python PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

FROM build AS listener-packages
COPY requirements/listener.lock ./
RUN pip install --require-hashes --requirement listener.lock

FROM build AS worker-packages
COPY requirements/worker.lock ./
RUN pip install --require-hashes --requirement worker.lock

FROM build AS program
COPY requirements/dev.lock ./
# What builds our wheel, of the versions and hashes of the developers' lock.
RUN awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' dev.lock > build.lock \
    && pip install --require-hashes --requirement build.lock
COPY pyproject.toml README.md LICENSE ./
COPY dicom_node dicom_node
COPY workers workers
COPY training training
COPY migrations migrations
RUN /opt/cxr-node/bin/hatchling build --target wheel --directory /dist \
    && pip install --no-deps --no-index --target /opt/program /dist/*.whl

FROM base AS runtime
# The numbers are fixed, so that files in volumes keep their owner over every rebuild.
RUN groupadd --gid 10001 cxr \
    && useradd --uid 10001 --gid cxr --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cxr \
    && install --directory --owner=cxr --group=cxr /var/lib/cxr-node /var/lib/cxr-node/archive
LABEL org.opencontainers.image.title="cxr-dicom-node" \
      org.opencontainers.image.description="A DICOM node that screens chest X-rays; not a medical device" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/program/bin:/opt/cxr-node/bin:$PATH PYTHONPATH=/opt/program HOME=/tmp
WORKDIR /var/lib/cxr-node
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["dicom-node"]
CMD ["--help"]

FROM runtime AS listener
COPY --from=listener-packages /opt/cxr-node /opt/cxr-node
COPY --from=program /opt/program /opt/program
EXPOSE 11112

FROM runtime AS worker
COPY --from=worker-packages /opt/cxr-node /opt/cxr-node
COPY --from=program /opt/program /opt/program
